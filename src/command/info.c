/* info.c - the command `info`: the whole resolved configuration of this build on these ranks, as a table or JSON. */
#include "command/compute.h"
#include "command/feasible.h"
#include "command/threads.h"

#include <hdf5.h>
#include <string.h>

static json_t *list_methods(void) {
    json_t *list = json_array();
    for (int i = 0; i < mdp_n_criterion; i++) mdp_json_add(&list, json_string(mdp_criteria[i].name));
    return list;
}

static json_t *list_names(const char *const *names) {
    json_t *list = json_array();
    for (int i = 0; names[i]; i++) mdp_json_add(&list, json_string(names[i]));
    return list;
}

static json_t *describe_libraries(void) {
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING] = "", hdf5[40], blas[100];
    int n_char = 0;
    unsigned major = 0, minor = 0, release = 0;
    MPI_Get_library_version(mpi, &n_char);
    mpi[strcspn(mpi, "\n,")] = '\0';
    mdp_blas_name(blas, sizeof blas);
    H5get_libversion(&major, &minor, &release);
    snprintf(hdf5, sizeof hdf5, "%u.%u.%u", major, minor, release);
    return json_pack("{s:s, s:s, s:s, s:s}", "MPI", mpi, "HDF5", hdf5, "BLAS", blas, "jansson", JANSSON_VERSION);
}

static json_t *describe(const mdp_session *session, double flop_per_second) {
#ifdef MDP_DEBUG_HOOKS
    const char *build = "debug hooks";
#else
    const char *build = "release";
#endif
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:o, s:s, s:o, s:o, s:o, s:o}", "version", MDP_VERSION, "build",
                  build, "ranks", session->comm->size, "nodes", session->comm->n_node, "threads", session->n_thread,
                  "cores_of_rank_0", mdp_threads_cores(), "libraries", describe_libraries(), "compute",
                  session->compute, "families", list_names(mdp_family_names()), "methods", list_methods(), "budgets",
                  list_names(mdp_budget_names), "normalise", list_names(mdp_score_normalise_names));
    if (root && flop_per_second > 0.0) mdp_json_put(&root, "gflops", json_real(flop_per_second / 1e9));
    return root;
}

static void show_table(const json_t *root) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        if (json_is_object(value)) {
            show_table(value);
            continue;
        }
        mdp_print("%-16s", key);
        if (json_is_string(value)) mdp_print(" %s", json_string_value(value));
        if (json_is_integer(value)) mdp_print(" %lld", (long long)json_integer_value(value));
        if (json_is_real(value)) mdp_print(" %.4g", json_real_value(value));
        for (size_t i = 0; i < json_array_size(value); i++)
            mdp_print(" %s", json_string_value(json_array_get(value, i)));
        mdp_print("\n");
    }
}

/* Rank 0. */
static mdp_status show(const mdp_session *session, double flop_per_second) {
    json_t *root = describe(session, flop_per_second), *families = NULL;
    char *text = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the description.");
    mdp_status status = mdp_ok();
    if (mdp_session_option(session, OPTION_JSON)->flag) {
        status = mdp_families_list(&families);
        if (status.code == MDP_OK) mdp_json_put(&root, "family_table", families);
        if (status.code == MDP_OK) status = mdp_json_print(root, &text);
    } else {
        show_table(root);
    }
    if (text) mdp_print_text(text);
    mdp_free(text);
    json_decref(root);
    return status;
}

mdp_status mdp_command_info_all(mdp_session *session) {
    double flop_per_second = 0.0;
    MDP_TRY(mdp_session_choose_compute_all(session, false));
    if (mdp_session_option(session, OPTION_PEAK)->flag)
        MDP_TRY(mdp_threads_measure_all(session->comm, session->gemm, session->n_thread, &flop_per_second));
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = show(session, flop_per_second);
    return mdp_agree_all(session->comm, status);
}
