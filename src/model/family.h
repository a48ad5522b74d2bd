/* family.h - one row of the family table: how a model_type spells its config keys and tensors, what an absent key
 * means, and which of the known rules it computes by. Binding resolves all of it once; nothing later looks at a family.
 */
#ifndef MDP_MODEL_FAMILY_H
#define MDP_MODEL_FAMILY_H

#include "mdp/model.h"

/* A whole number of config.json under its spellings (the first is what the class itself calls it). */
typedef struct mdp_int_key {
    const char *name;    /* NULL: the family has no such key and the default always holds */
    const char *other;   /* second spelling, or NULL */
    bool other_yields;   /* the second spelling is read only where the first is absent; else both must agree */
    int64_t absent;      /* class default */
    bool null_is_absent; /* null is allowed, and the reader of the key says what it then means */
    bool may_be_list;    /* one number for each layer, all equal */
    bool may_be_zero;
    bool minus_one_is_absent;
} mdp_int_key;

typedef struct mdp_real_key {
    const char *name;
    double absent;
} mdp_real_key;

typedef struct mdp_bool_key {
    const char *name; /* NULL: the family has no such key and the default always holds */
    bool absent;
} mdp_bool_key;

/* A key with which the family computes in one way only: any other value is refused. */
typedef struct mdp_fixed_key {
    const char *name;  /* NULL ends a list of them */
    const char *value; /* as JSON; absent and null pass too */
} mdp_fixed_key;

/* A gated MLP that is not routed to. {layer} stands for its number. */
typedef struct mdp_mlp_names {
    const char *gate, *up, *down; /* [ff, d_model], [ff, d_model], [d_model, ff] */
    const char *gate_up;          /* gate and up under each other in one tensor; NULL: not */
} mdp_mlp_names;

/* Linear attention, as mdp_delta has it. */
typedef struct mdp_delta_names {
    const char *in, *z, *b, *a; /* z and a NULL: grouped */
    const char *kernel, *rate, *shift, *norm, *o;
} mdp_delta_names;

/* Which layers the window applies to when config.json has no list of layer types: all or the even ones below
 * window_end, or all from there on. */
typedef enum mdp_window_rule { MDP_WINDOW_ALL, MDP_WINDOW_EVEN, MDP_WINDOW_FROM } mdp_window_rule;

/* One way in which the experts of a layer are stored. {layer} and {expert} stand for their numbers. */
typedef struct mdp_expert_layout {
    const char *router;
    const char *router_bias; /* [n_expert] added to logits; NULL: none */
    const char *choice_bias; /* [n_expert] or [1, n_expert]; NULL: none */
    const char *experts;     /* what every tensor of the experts begins with */
    /* one tensor per expert: [d_ff, d_model], [d_ff, d_model], [d_model, d_ff] */
    const char *gate, *up, *down;
    /* or fused: [n_expert, 2 d_ff, d_model] with the gate's rows first, and [n_expert, d_model, d_ff] */
    const char *fused_gate_up, *fused_down;
    /* or, where fused_up is named, all rows of all experts under each other: [n_expert d_ff, d_model] each, the last
     * one meaning [d_model, d_ff] of an expert transposed; fused_gate_up is the gate alone */
    const char *fused_up;
    const char *fused_gate_up_bias, *fused_down_bias; /* [n_expert, 2 d_ff], [n_expert, d_model]; NULL: none */
    /* [n_expert, 2 d_ff, d_model / 32] and [n_expert, d_model, d_ff / 32]: the fused matrices are MXFP4, 32 codes in 16
     * bytes for each scale; NULL: they are not */
    const char *fused_gate_up_scales, *fused_down_scales;
    bool transposed;  /* fused matrices are stored [n_expert, d_model, 2 d_ff] and [n_expert, d_ff, d_model] */
    bool interleaved; /* the gate's and up's rows alternate in the fused matrix (and bias) */
} mdp_expert_layout;

#define MDP_MAX_LAYOUT 2

struct mdp_family {
    const char *model_type;
    /* ---- config.json ---- */
    const char *scope; /* the object of config.json that has all other keys, a dot leading into one within another;
                        * NULL, or not there: the whole */
    mdp_int_key d_model, d_ff, n_layer, n_head, n_kv_head, head_dim, vocab_size, max_position;
    mdp_int_key q_rank, kv_rank, n_own, n_rope, n_value; /* of latent attention; kv_rank.name == NULL: none */
    /* layers with linear attention: those that the list layer_types calls so, without one all but every linear_step-th;
     * name == NULL: none */
    mdp_int_key linear_step;
    mdp_int_key n_delta_key, d_delta_key, n_delta_value, d_delta_value, n_delta_kernel; /* its sizes */
    mdp_int_key n_extra;     /* layers that predict tokens further ahead (MTP); name == NULL: none */
    const char *extra;       /* what the names of their tensors begin with; NULL: they are layers after the last */
    mdp_bool_key rope_pairs; /* name != NULL: pairs are rotated when it is true, else halves */
    mdp_int_key n_expert, top_k;
    /* layer l has experts when l + 1 is a multiple of sparse_step and l one of sparse_every (absent: 1), l lies in
     * first_sparse .. last_sparse, is not in the list dense_layers (NULL: no such key) and not called dense in the list
     * mlp_types, which stands for the former where it is given; the others have a gated MLP of dense_ff */
    mdp_int_key sparse_step, sparse_every, first_sparse, last_sparse, dense_ff;
    const char *dense_layers, *mlp_types;
    const char *sparse_layers;   /* list of the layers with experts, which stands for the steps; NULL: no such key */
    mdp_int_key shared_ff;       /* of the shared expert; name == NULL: n_shared times d_ff */
    mdp_int_key n_shared;        /* name == NULL: none */
    mdp_int_key n_group, n_open; /* of experts (mdp_router_rule); name == NULL: one group */
    /* groups count only where this key has this text; NULL: always */
    const char *group_method_key, *group_method;
    const mdp_fixed_key *fixed; /* NULL: none */
    /* the window applies when window_flag says so: to the layers that the list layer_types (NULL: no such key) calls
     * sliding, without a list to those that window_rule gives below layer window_end (0: all layers), and that are not
     * every window_step-th (name == NULL: no such key) */
    mdp_int_key window, window_end, window_step;
    mdp_bool_key window_flag;
    mdp_window_rule window_rule;
    const char *layer_types;
    bool plain_beyond_window; /* in a model with a window, layers without one are not rotated */
    mdp_int_key most_tokens;  /* of a sequence whose queries see all keys before them; name == NULL: any */
    /* layers without rotation: zeros of the list plain_layers, else every plain_step-th; name == NULL: none. They have
     * no norms of queries and keys either, see all keys, and with temper_flag queries grow by temper_scale with the
     * logarithm of the position in steps of temper_floor. In the others a query sees the keys of its own chunk. */
    const char *plain_layers;
    mdp_int_key plain_step, chunk, temper_floor;
    mdp_bool_key temper_flag;
    mdp_real_key temper_scale;
    mdp_real_key norm_eps;
    mdp_real_key clip; /* of queries, keys and values; name == NULL: none */
    /* multipliers; name == NULL: 1, and for attention_scale 1 / sqrt(head_dim) */
    mdp_real_key embedding_scale, residual_scale, logit_divisor, attention_scale;
    mdp_bool_key bias; /* of the projections that have a name for it below */
    mdp_bool_key head_bias_flag;
    mdp_bool_key tied;
    mdp_real_key jitter; /* read when score is MDP_SPARSEMIXER */
    const char
        *normalise_power; /* key of p where weights are divided by their p-norm; NULL: none. Stands for the flag */
    mdp_bool_key normalise_flag; /* read when normalise is MDP_NORMALISE_BY_FLAG */
    mdp_bool_key qk_norm_flag;   /* name == NULL: there are norms when there is a qk_norm */
    double normalise_added;      /* to the sum of chosen weights (mdp_router_rule) */
    mdp_real_key normalise_least;
    mdp_real_key weight_scale; /* name == NULL: 1 */
    const char *activation_key, *activation;
    mdp_real_key alpha, limit;  /* name != NULL: MDP_SWIGLU_CLAMPED, whatever activation_key says */
    const char *rope_theta_key; /* where rope_theta is, if not where it is in all others; NULL: there */
    const char *rope_default;   /* class default of rope_parameters as JSON, but for rope_theta; NULL: plain */
    double rope_theta;          /* class default */
    double partial_rotary;      /* class default of partial_rotary_factor; 0: the family rotates whole heads */
    const char *rotary_dim;     /* older key of the rotated values of a head; NULL: none */
    /* ---- rules ---- */
    mdp_router_score score;
    mdp_normalise normalise;
    mdp_group_score group_score;
    mdp_rope_layout rope_layout;
    mdp_qk_norm qk_norm;
    bool qk_norm_last;  /* queries and keys are normalised after they are rotated */
    bool router_is_f32; /* whatever the type of the others, as transformers keeps it */
    bool gated_queries; /* each head's rows of q are followed by those of a gate of its output */
    bool weigh_input;   /* routing weights multiply what experts read, not what they return */
    mdp_norm_kind norm_kind;
    /* ---- tensors ---- */
    const char *embedding, *final_norm, *head;
    const char *norm1, *norm2, *q, *k, *v, *o;
    const char *norm1_bias, *norm2_bias, *final_norm_bias;                       /* NULL: none */
    const char *head_bias;                                                       /* where head_bias_flag says so */
    const char *q_a, *q_a_bias, *q_a_norm, *kv_a, *kv_a_bias, *kv_a_norm, *kv_b; /* of latent attention; q is q_a's */
    const char *whole_q;                           /* there, the queries' projection where there is no q_a */
    const char *q_bias, *k_bias, *v_bias, *o_bias; /* NULL: that projection has none */
    const char *qkv;                               /* q, k and v under each other in one tensor; NULL: not */
    const char *sinks;                             /* NULL: none */
    mdp_delta_names delta;                         /* of linear attention */
    const char *q_norm, *k_norm;                   /* when there is a qk_norm; NULL: weights of 1 */
    mdp_mlp_names dense, shared;
    const char *shared_gate;                         /* [1, d_model]; NULL: the shared expert counts in full */
    mdp_expert_layout layouts[MDP_MAX_LAYOUT];       /* used ones first; router == NULL ends them */
    mdp_expert_layout extra_layouts[MDP_MAX_LAYOUT]; /* of layers under `extra`, which are numbered from 0; none: those
                                                        have no experts */
};

/* The family of a model_type. Errors: MDP_BAD_INPUT with the supported ones. */
mdp_status mdp_family_find(const char *model_type, const char *path, const mdp_family **out);

#endif
