/* model.h - a model as structs: config.json and tensor names are bound once, here; nothing later compares strings.
 * A family is a row of the family table (src/model/family.c): flags, name patterns, config keys with defaults. */
#ifndef MDP_MODEL_H
#define MDP_MODEL_H

#include "mdp/checkpoint.h"
#include "mdp/linalg.h"

/* ---- what a family is ---------------------------------------------------------------------------------------- */

typedef enum mdp_router_score { MDP_SOFTMAX_ALL, MDP_SOFTMAX_CHOSEN, MDP_SIGMOID, MDP_SPARSEMIXER } mdp_router_score;
typedef enum mdp_normalise { MDP_NORMALISE_NEVER, MDP_NORMALISE_ALWAYS, MDP_NORMALISE_BY_FLAG } mdp_normalise;

/* What a group of experts is chosen by: its best expert, or the sum of its two best. */
typedef enum mdp_group_score { MDP_GROUP_BEST, MDP_GROUP_BEST_TWO } mdp_group_score;

/* The router of a layer, resolved for the model at hand. z = W x (+ bias); p = score(z); c = p, with the layer's choice
 * bias where it has one; the k largest c are chosen (ties: lower index) among the experts of the open groups; g = p of
 * the chosen, if `normalise` divided by max(their sum + added, least), then times scale. All in f64. MDP_SOFTMAX_CHOSEN
 * takes the softmax over the chosen alone. MDP_SPARSEMIXER always chooses two, and weighs each by itself
 * (sparsemixer.c); it has neither bias nor groups. */
typedef struct mdp_router_rule {
    mdp_router_score score;
    bool normalise;
    double jitter;    /* of MDP_SPARSEMIXER */
    bool weigh_input; /* weights multiply what experts read, not what they return */
    double added, least;
    double scale;
    int32_t n_group, n_open; /* experts lie in runs of group_size; a token sees the n_open best (ties: lower) */
    int32_t group_size;      /* experts of the model's layer in a group; of no meaning where n_group is 1 */
    mdp_group_score group_score;
} mdp_router_rule;

typedef struct mdp_family mdp_family; /* src/model/family.h */

/* ---- what a model is ----------------------------------------------------------------------------------------- */

typedef struct mdp_rope {
    mdp_rope_layout layout;
    int64_t n_pair;          /* rotated pairs of a head */
    double *frequency;       /* [n_pair] angle per position, f64 values of the f32 arithmetic of the library */
    double attention_factor; /* cos and sin are multiplied by it */
    double score_factor;     /* and q . k by this one, in latent attention */
    /* dynamic: frequencies depend on the sequence length beyond max_position */
    bool dynamic;
    double theta, factor;
    int64_t max_position, n_rotated;
    /* sequences longer than long_beyond have other frequencies and another factor; long_frequency NULL: none have */
    double *long_frequency; /* [n_pair] */
    double long_attention_factor;
    int64_t long_beyond;
} mdp_rope;

typedef enum mdp_qk_norm { MDP_QK_NORM_NONE, MDP_QK_NORM_HEAD, MDP_QK_NORM_WHOLE } mdp_qk_norm;

/* Sizes of latent attention: keys and values (with q_rank > 0 queries too) are made from a short row. */
typedef struct mdp_latent {
    int64_t q_rank;  /* 0: queries are made from the residual stream */
    int64_t kv_rank; /* 0: no latent attention */
    int64_t n_own;   /* values of a query and key that are the head's own and not rotated */
    int64_t n_rope;  /* rotated values after those; of the keys one row for all heads */
    int64_t n_value;
} mdp_latent;

/* Sizes of linear attention by the gated delta rule. */
typedef struct mdp_delta_sizes {
    int64_t n_key, d_key;     /* heads of queries and keys, and their values */
    int64_t n_value, d_value; /* heads of values, so many to a key head; 0: no layer has linear attention */
    int64_t n_kernel;         /* tokens that the convolution sees, */
    int64_t n_channel;        /* and its channels: all queries, all keys, all values */
} mdp_delta_sizes;

/* Linear attention; kernel.tensor == NULL: not. */
typedef struct mdp_delta {
    /* Queries, keys, values and output gates, then learning rates b and decays a of the value heads. grouped: `in` has
     * for each key head its query, key, values and gates, `b` its learning rates and decays; z and a are not there.
     * Else `in` has queries, keys and values. */
    mdp_matrix in, z, b, a;
    bool grouped;
    mdp_matrix kernel;         /* [n_channel, n_kernel] */
    mdp_matrix rate, shift;    /* [1, n_value] logarithm of the rate of decay; added to a */
    mdp_matrix norm;           /* [1, d_value] of a head's output */
    mdp_activation activation; /* after the convolution */
} mdp_delta;

typedef struct mdp_attention {
    mdp_matrix q, o;                           /* [n_head * q_step, d_model], [d_model, n_head * head_dim] */
    mdp_matrix k, v;                           /* [n_kv_head * head_dim, d_model] */
    mdp_matrix q_bias, k_bias, v_bias, o_bias; /* [1, rows of the matrix]; tensor == NULL: none */
    mdp_qk_norm qk_norm;                       /* of queries and keys before rotation: each head, or the whole vector */
    mdp_matrix q_norm, k_norm;                 /* [1, head_dim] or [1, whole vector]; tensor == NULL: weights of 1 */
    mdp_matrix sinks;                          /* [1, n_head] a score that takes weight from the keys' and gives no
                                                * value; tensor == NULL: none */
    double clip;                               /* q, k, v are clamped to +-clip after their norms; 0: not */
    int64_t window;                            /* keys visible to a query, itself included; 0: all before it */
    int64_t chunk;                             /* keys before the query's own run of so many are not; 0: they are */
    bool plain;                                /* queries and keys are not rotated */
    bool qk_norm_last;                         /* they are normalised after they are rotated */
    double temper_scale;                       /* queries are multiplied by 1 + temper_scale * log(1 + s), s whole */
    int64_t temper_floor;                      /* steps of temper_floor positions; 0: they are not */
    double scale;                              /* of q . k */
    /* latent attention; kv_b.tensor == NULL: not. q is made from q_a's rows where there is one; k and v are not there
     */
    mdp_matrix q_a, q_a_bias, q_a_norm;    /* [q_rank, d_model]; tensor == NULL: none */
    mdp_matrix kv_a, kv_a_bias, kv_a_norm; /* [kv_rank + n_rope, d_model]; the norm is of the first kv_rank */
    mdp_matrix kv_b;                       /* [n_head * (n_own + n_value), kv_rank] */
    mdp_delta delta;                       /* then o [d_model, n_value * d_value] is all else there is */
} mdp_attention;
#define MDP_LATENT_EPS 1e-6 /* of their norms, whatever the model's own */
/* Values of its projections. */
int64_t mdp_attention_values(const mdp_attention *attention);

typedef struct mdp_expert {
    mdp_matrix gate, up, down;                /* [d_ff, d_model], [d_ff, d_model], [d_model, d_ff] */
    mdp_matrix gate_bias, up_bias, down_bias; /* [1, rows of the matrix]; tensor == NULL: all three have none */
    /* [1, d_model], [1, 1], [1, 1]; tensor == NULL: they are rows of its layer's, as of every expert of a model */
    mdp_matrix router, router_bias, choice_bias;
} mdp_expert;

/* One stored tensor that belongs to the experts of a layer, with how to slice it: what a transform walks over. */
typedef struct mdp_expert_tensor {
    const mdp_tensor *tensor;
    mdp_expert_t expert; /* the expert it belongs to, or -1: a fused tensor or the router, sliced along `axis` */
    int axis;            /* of the fused tensor: experts are the entries along it */
    int64_t n_each;      /* entries of an expert along it; 0: one */
    const char *stack;   /* name pattern with {expert}; owned by the model; NULL for fused ones */
    bool of_inputs;      /* a scale of what the expert reads, which added experts take from the first */
} mdp_expert_tensor;

typedef struct mdp_moe {
    int32_t n_expert; /* may differ between layers in our own files */
    int32_t top_k;
    int64_t d_ff; /* of the largest expert */
    mdp_router_rule rule;
    mdp_matrix router;         /* [n_expert, d_model] */
    mdp_matrix router_bias;    /* [1, n_expert] added to z; tensor == NULL: none */
    mdp_matrix choice_bias;    /* [1, n_expert] added to p for choosing alone; tensor == NULL: none */
    mdp_expert *experts;       /* [n_expert] */
    mdp_activation activation; /* of the experts, the shared one too */
    mdp_expert shared;         /* sees every token; gate.tensor == NULL: none */
    int64_t shared_ff;         /* rows of its gate */
    mdp_matrix shared_gate;    /* [1, d_model]: its output is times sigmoid(shared_gate . x); tensor == NULL: times 1 */
    int64_t n_expert_tensor;
    mdp_expert_tensor *expert_tensors; /* every tensor that changes when experts are removed: routers, experts */
} mdp_moe;

/* y = x / rms(x) * w, the same with 1 + w, or y = (x - mean) / deviation * w + b. */
typedef enum mdp_norm_kind { MDP_RMS_NORM, MDP_RMS_NORM_OF_ONE_PLUS, MDP_LAYER_NORM } mdp_norm_kind;

/* A norm of the residual stream; which kind, the model says. */
typedef struct mdp_norm {
    mdp_matrix weight; /* [1, d_model] */
    mdp_matrix bias;   /* [1, d_model]; tensor == NULL: none */
} mdp_norm;

typedef struct mdp_layer {
    mdp_norm norm1, norm2;
    mdp_attention attention;
    bool is_moe;
    mdp_moe moe;
    mdp_expert dense; /* of a layer without experts */
    int64_t dense_ff;
    mdp_activation activation; /* of the dense layer */
} mdp_layer;

/* See a matrix that is there; `expert`: the routed expert that it is of, -1: of none. */
typedef void mdp_matrix_visit(void *context, const mdp_matrix *matrix, mdp_expert_t expert);
/* Every matrix and vector of a layer, in the order of a pass. Local. */
void mdp_layer_visit(const mdp_layer *layer, mdp_matrix_visit *see, void *context);
/* Those of one MLP, as of the expert of that number. */
void mdp_expert_visit(const mdp_expert *mlp, mdp_expert_t expert, mdp_matrix_visit *see, void *context);

typedef struct mdp_model {
    const mdp_catalogue *catalogue; /* borrowed */
    const mdp_family *family;
    char model_type[64];
    const char *count_key; /* of config.json: the number of experts; borrowed from the family */
    bool count_is_nested;  /* it is in an object of its own, so per_layer_config cannot say it for each layer */
    int64_t n_layer, d_model, vocab_size, n_head, n_kv_head, head_dim, max_position;
    int64_t most_tokens; /* of a sequence that can be computed: in longer ones queries see chosen keys alone; 0: any */
    double norm_eps;
    mdp_norm_kind norm_kind;
    double embedding_scale; /* embeddings are multiplied by it, */
    double residual_scale;  /* what attention and the block of experts add to the residual stream too, */
    double logit_divisor;   /* and logits are divided by it; 1 in most families */
    int64_t q_step;         /* rows of q for a head: its query, and where it is twice head_dim a gate of its output */
    mdp_latent latent;      /* then head_dim is n_own + n_rope, and n_kv_head is n_head */
    mdp_delta_sizes delta;
    mdp_rope rope;
    mdp_matrix embedding; /* [vocab_size, d_model] */
    mdp_norm final_norm;
    mdp_matrix head;      /* [vocab_size, d_model]; the embedding when tied */
    mdp_matrix head_bias; /* [1, vocab_size]; tensor == NULL: none */
    mdp_layer *layers;    /* [n_layer] */
    unsigned char *extra; /* [catalogue->n_tensor] nonzero: of layers that predict tokens further ahead (MTP); they are
                             not computed, and leave with the first expert that is removed unless they are pruned too */
    int64_t n_extra;
    int64_t *n_value;    /* [catalogue->n_tensor] values that a stored tensor stands for; scales: 0 */
    int64_t n_parameter; /* values of all bound tensors */
    int64_t n_active;    /* parameters that one token meets: all but the experts it does not choose */
    char **names;        /* patterns owned by the model; private */
    int64_t n_name;
} mdp_model;

/* Bind a catalogue: parse config.json with the family's keys and class defaults, find every tensor, check every shape.
 * Local (every rank does the same on the broadcast catalogue). Errors: MDP_BAD_INPUT, naming layer, tensor, the config
 * key, expected and found; unknown model_type with the supported ones. Only shapes are looked at, no weights. */
mdp_status mdp_model_bind(const mdp_catalogue *catalogue, mdp_model **out);
/* The layers of a bound model that predict tokens further ahead, as a model of their own: only the experts and routers
 * of those that have any are bound, layer i being the i-th of them; n_layer is 0 where there are none. Local. Errors:
 * MDP_BAD_INPUT, naming the tensor, for experts that could not be renumbered. */
mdp_status mdp_model_bind_extra(const mdp_model *model, mdp_model **out);
void mdp_model_destroy(mdp_model *model); /* NULL is allowed */
/* Take all codes with scales as if they stood in bf16: each value is rounded as it is read. Local. */
void mdp_model_round_codes(mdp_model *model);
/* What a stored tensor is to whoever writes the model in another type. */
typedef struct mdp_stored {
    mdp_scaling scaling; /* of codes of few bits; tensor == NULL: none */
    bool is_real;        /* real numbers, by themselves or by codes and scales; else it has only one form */
    bool is_beside;      /* scales: of codes, or of what a quantised layer reads; they go where codes are decoded */
    bool stays_f32; /* f32 whatever the others are: as transformers keeps it (biases that choose experts, routers of
                     * some families), or as this checkpoint does, whose embedding is not f32 */
    bool is_linear; /* the weights of a linear layer that FP8 checkpoints have in FP8, a row for each output; */
    bool is_turned; /* or a column for each output */
    bool is_left;   /* of a linear layer that they leave as it is, and have to name */
    bool is_packed; /* MXFP4: decoded, it has a name without its ending, and columns for rows */
} mdp_stored;
/* Of all tensors of the catalogue: *out [n_tensor] is new. Local. MDP_BAD_INPUT: codes without scales. */
mdp_status mdp_model_list_stored(const mdp_model *model, mdp_stored **out);
/* Names of the supported families, NULL-terminated. */
const char *const *mdp_family_names(void);
/* The family table as a JSON array: model_type, keys and tensors that change when experts are removed, what a family
 * has. Local. */
mdp_status mdp_families_list(json_t **out);

/* Are the angles of a sequence of `length` tokens other than those of short ones? */
bool mdp_rope_is_stretched(const mdp_rope *rope, int64_t length);
/* cos and sin [n_pair] of a position, for a sequence of `length` tokens, in the library's f32 arithmetic. Local. */
void mdp_rope_angles(const mdp_rope *rope, int64_t length, int64_t position, float *cosine, float *sine);

/* How experts are numbered anew. */
typedef struct mdp_numbering {
    /* The new number of the expert `number` that a name speaks of (a tensor's, or the beginning of one), -1: it goes.
     * false: no tensor of that expert is called so. */
    bool (*find)(const void *context, const char *name, mdp_expert_t number, mdp_expert_t *out);
    const void *context;
} mdp_numbering;
/* Does a name or pattern speak of experts by number? */
bool mdp_names_expert(const char *name);

/* What config.json is to say. */
typedef struct mdp_config_change {
    int64_t n_expert;
    int64_t top_k;           /* experts of a token; 0: as it is */
    int64_t d_ff;            /* neurons of an expert; 0: as it is */
    bool without_extra;      /* layers that predict tokens further ahead are left out */
    const int32_t *of_layer; /* [n_layer] experts of each, 0: it has none; NULL: all have n_expert */
    bool list_layers; /* say in per_layer_config what differs from n_expert; where there is one, it is kept right */
    const mdp_numbering *numbering; /* of experts that config.json names; NULL: their numbers stay */
} mdp_config_change;
/* config.json with the keys of a change (as spelled in it; every spelling present) set; all other bytes kept; an absent
 * key is inserted after the first brace. Names of experts are renumbered. New text. Errors: MDP_BAD_INPUT, naming the
 * key, for names of experts that cannot be. */
mdp_status mdp_model_patch_config(const mdp_model *model, const mdp_config_change *change, char **out, int64_t *n_byte);
/* The text of config.json [*n_byte] with another type of numbers: `dtype` ("bfloat16") under every dtype and
 * torch_dtype of the whole and of the objects in it, inserted where there is none; quantization_config as this JSON, or
 * taken out (NULL). All other bytes are kept. *text is replaced. */
mdp_status mdp_config_set_type(const char *dtype, const char *quantisation, char **text, int64_t *n_byte);

#endif
