/* excerpt.c - some layers of a result alone: a small part of a large checkpoint, for rehearsals and for looking. */
#include "mdp/transform.h"

#include <stdlib.h>
#include <string.h>

/* Layer of a tensor: the first part of its name that is a number, in every family; -1: none. */
static int64_t layer_of(const char *name) {
    for (const char *part = name; part; part = strchr(part, '.')) {
        if (*part == '.') part++;
        size_t n = strspn(part, "0123456789");
        if (n > 0 && (part[n] == '.' || part[n] == '\0')) return strtoll(part, NULL, 10);
    }
    return -1;
}

static void free_tensor(mdp_output_tensor *tensor) {
    mdp_free(tensor->name);
    mdp_free(tensor->segments);
    mdp_free(tensor->stack);
}

mdp_status mdp_transform_excerpt(mdp_output *output, int64_t first, int64_t last) {
    int64_t n = 0;
    if (first < 0 || last < first || last >= output->n_layer)
        return MDP_ERROR(MDP_USAGE, "--layers %lld-%lld: the model has layers 0 to %lld.", (long long)first,
                         (long long)last, (long long)output->n_layer - 1);
    output->tensor_byte = 0;
    for (int64_t t = 0; t < output->n_tensor; t++) {
        int64_t layer = layer_of(output->tensors[t].name);
        if (layer >= first && layer <= last) {
            output->tensor_byte += output->tensors[t].n_byte;
            output->tensors[n++] = output->tensors[t];
        } else {
            free_tensor(&output->tensors[t]);
        }
    }
    output->n_tensor = n;
    return mdp_ok();
}
