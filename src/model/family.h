/* family.h - one row of the family table: how a model_type spells its config keys and tensors, what an absent key
 * means, and which of the known rules it computes by. Binding resolves all of it once; nothing later looks at a family.
 */
#ifndef MDP_MODEL_FAMILY_H
#define MDP_MODEL_FAMILY_H

#include "mdp/model.h"

/* A whole number of config.json under its spellings (the first is what the class itself calls it). */
typedef struct mdp_int_key {
    const char *name;
    const char *other;   /* second spelling, or NULL */
    int64_t absent;      /* class default */
    bool null_is_absent; /* null is allowed, and the reader of the key says what it then means */
} mdp_int_key;

typedef struct mdp_real_key {
    const char *name;
    double absent;
} mdp_real_key;

typedef struct mdp_bool_key {
    const char *name; /* NULL: the family has no such key and the default always holds */
    bool absent;
} mdp_bool_key;

/* One way in which the experts of a layer are stored. {layer} and {expert} stand for their numbers. */
typedef struct mdp_expert_layout {
    const char *router;
    const char *experts; /* what every tensor of the experts begins with */
    /* one tensor per expert: [d_ff, d_model], [d_ff, d_model], [d_model, d_ff] */
    const char *gate, *up, *down;
    /* or fused: [n_expert, 2 d_ff, d_model] with the gate's rows first, and [n_expert, d_model, d_ff] */
    const char *fused_gate_up, *fused_down;
} mdp_expert_layout;

#define MDP_MAX_LAYOUT 2

struct mdp_family {
    const char *model_type;
    /* ---- config.json ---- */
    mdp_int_key d_model, d_ff, n_layer, n_head, n_kv_head, head_dim, vocab_size, max_position;
    mdp_int_key n_expert, top_k;
    mdp_int_key window; /* applies to all layers */
    mdp_real_key norm_eps;
    mdp_bool_key tied;
    mdp_bool_key normalise_flag; /* read when normalise is MDP_NORMALISE_BY_FLAG */
    const char *activation_key, *activation;
    double rope_theta; /* class default */
    /* ---- rules ---- */
    mdp_router_score score;
    mdp_normalise normalise;
    mdp_rope_layout rope_layout;
    /* ---- tensors ---- */
    const char *embedding, *final_norm, *head;
    const char *norm1, *norm2, *q, *k, *v, *o;
    mdp_expert_layout layouts[MDP_MAX_LAYOUT]; /* used ones first; router == NULL ends them */
};

/* The family of a model_type. Errors: MDP_BAD_INPUT with the supported ones. */
mdp_status mdp_family_find(const char *model_type, const char *path, const mdp_family **out);

#endif
