/* config.h - the numbers of config.json, resolved through a family's keys and class defaults, and checked. */
#ifndef MDP_MODEL_CONFIG_H
#define MDP_MODEL_CONFIG_H

#include "model/family.h"

typedef struct mdp_config {
    int64_t d_model, d_ff, n_layer, n_head, n_kv_head, head_dim, vocab_size, max_position;
    int64_t n_expert, top_k;
    int64_t window; /* keys that a query sees, itself included; 0: all before it */
    double norm_eps;
    bool tied;
    bool normalise; /* weights of the chosen experts are made to add up to 1 */
    mdp_activation activation;
} mdp_config;

/* Read everything but the rope from a parsed config.json; `path` names that file in errors. */
mdp_status mdp_config_read(const json_t *json, const mdp_family *family, const char *path, mdp_config *out);

/* Read the rope (rope.c); config's sizes are set. out->frequency is new, freed by the caller with mdp_free. */
mdp_status mdp_rope_read(const json_t *json, const mdp_family *family, const mdp_config *config, const char *path,
                         mdp_rope *out);

/* What a JSON value is, for error sentences: "null", "a text", ...; "missing" for NULL. */
const char *mdp_config_kind(const json_t *value);

#endif
