/* subsets.c - sets of experts in lexicographic order, and what is asked and found about them. */
#include "mdp/subsets.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const mdp_subset_search_names[] = {
    [MDP_SUBSETS_GREEDY] = "greedy", [MDP_SUBSETS_BEAM] = "beam", [MDP_SUBSETS_EVERY] = "every", NULL};

/* ---- the request ----------------------------------------------------------------------------------------------- */

mdp_status mdp_subset_keeps_add(mdp_subset_request *request, int32_t keep) {
    int at = request->n_keep;
    for (int i = 0; i < request->n_keep; i++)
        if (request->keep[i] == keep) return mdp_ok();
    if (at == MDP_MOST_KEEPS)
        return MDP_ERROR(MDP_USAGE, "sets of more than %d sizes are to be measured; ask for fewer.", MDP_MOST_KEEPS);
    for (; at > 0 && request->keep[at - 1] > keep; at--) request->keep[at] = request->keep[at - 1];
    request->keep[at] = keep;
    request->n_keep++;
    return mdp_ok();
}

mdp_status mdp_subset_keeps_parse(const char *text, mdp_subset_request *out) {
    const char *at = text;
    out->n_keep = 0;
    while (*at != '\0') {
        char *end = NULL;
        long n = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || (*end != ',' && *end != '\0') || n < 1 || n > 1000000)
            return MDP_ERROR(MDP_USAGE, "--subsets %s: must be numbers of experts to keep, like 4,6.", text);
        MDP_TRY(mdp_subset_keeps_add(out, (int32_t)n));
        at = *end == ',' ? end + 1 : end;
    }
    return mdp_ok();
}

mdp_status mdp_subset_request_print(const mdp_subset_request *request, char **text) {
    json_t *list = json_array();
    *text = NULL;
    for (int i = 0; i < request->n_keep; i++) mdp_json_add(&list, json_integer(request->keep[i]));
    json_t *root = json_pack("{s:o, s:I, s:I, s:I, s:I, s:s}", "keep", list, "batch", (json_int_t)request->batch,
                             "n_tokens", (json_int_t)request->n_token, "seed", (json_int_t)request->seed, "max_subsets",
                             (json_int_t)request->most, "search", mdp_subset_search_names[request->search]);
    char *line = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    mdp_status status = line ? mdp_copy_text(text, line)
                             : MDP_ERROR(MDP_EXHAUSTED, "out of memory for what is asked of sets of experts.");
    mdp_json_free(line);
    return status;
}

void mdp_subsets_clear(mdp_subsets *subsets) {
    mdp_free(subsets->kept);
    mdp_free(subsets->without);
    mdp_free(subsets->losses);
}

/* ---- sets ------------------------------------------------------------------------------------------------------ */

/* n over k, or INT64_MAX. Every step divides evenly. */
static int64_t count_combinations(int64_t n, int64_t k) {
    int64_t out = 1;
    for (int64_t i = 1; i <= k; i++) {
        if (!mdp_multiply(out, n - k + i, &out)) return INT64_MAX;
        out /= i;
    }
    return out;
}

int64_t mdp_subset_count(const mdp_subset_kind *kind) {
    int64_t each = count_combinations(kind->n_expert / kind->n_group, kind->keep / kind->n_group), out = 1;
    if (each == INT64_MAX) return each;
    for (int32_t g = 0; g < kind->n_group; g++)
        if (!mdp_multiply(out, each, &out)) return INT64_MAX;
    return out;
}

/* The members of one group: the lowest of it. */
static void reset_group(const mdp_subset_kind *kind, int32_t group, mdp_expert_t *set) {
    int32_t n = kind->keep / kind->n_group, size = kind->n_expert / kind->n_group;
    for (int32_t i = 0; i < n; i++) set[group * n + i] = group * size + i;
}

void mdp_subset_first(const mdp_subset_kind *kind, mdp_expert_t *set) {
    for (int32_t g = 0; g < kind->n_group; g++) reset_group(kind, g, set);
}

/* Within one group; false: it was the last. */
static bool advance_group(const mdp_subset_kind *kind, int32_t group, mdp_expert_t *set) {
    int32_t n = kind->keep / kind->n_group, size = kind->n_expert / kind->n_group;
    mdp_expert_t *own = set + group * n;
    for (int32_t i = n - 1; i >= 0; i--) {
        if (own[i] >= (group + 1) * size - (n - i)) continue;
        own[i]++;
        for (int32_t j = i + 1; j < n; j++) own[j] = own[j - 1] + 1;
        return true;
    }
    return false;
}

bool mdp_subset_next(const mdp_subset_kind *kind, mdp_expert_t *set) {
    for (int32_t g = kind->n_group - 1; g >= 0; g--) {
        if (advance_group(kind, g, set)) return true;
        reset_group(kind, g, set);
    }
    return false;
}
