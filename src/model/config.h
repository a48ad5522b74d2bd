/* config.h - the numbers of config.json, resolved through a family's keys and class defaults, and checked. */
#ifndef MDP_MODEL_CONFIG_H
#define MDP_MODEL_CONFIG_H

#include "model/family.h"

/* What layers differ in. */
typedef struct mdp_layer_config {
    bool dense;       /* a gated MLP in the place of experts */
    int64_t window;   /* keys that a query sees, itself included; 0: all before it */
    int64_t chunk;    /* keys before the query's own run of so many are not seen; 0: they are */
    bool plain;       /* no rotation */
    bool linear;      /* linear attention */
    int64_t n_expert; /* 0: as the model has */
} mdp_layer_config;

/* The object of config.json that gives some layers a number of experts of their own. */
#define MDP_PER_LAYER "per_layer_config"

/* How weights of few bits are stored. */
typedef struct mdp_quantisation {
    int64_t block_row, block_col; /* values that share an FP8 scale, */
    bool in_blocks;               /* which config.json gives; else scales by row or for a whole tensor may be found */
} mdp_quantisation;

typedef struct mdp_config {
    int64_t d_model, d_ff, n_layer, n_head, n_kv_head, head_dim, vocab_size, max_position;
    int64_t most_tokens; /* of a sequence; 0: any */
    mdp_latent latent;
    mdp_delta_sizes delta;
    int64_t n_extra; /* layers after the last that predict tokens further ahead */
    int64_t n_expert, top_k;
    int64_t dense_ff;  /* of dense layers */
    int64_t shared_ff; /* of the shared expert; 0: none */
    int64_t n_group;   /* of experts, of which a token sees n_open */
    int64_t n_open;
    double normalise_least, weight_scale; /* of the router's rule */
    int64_t window;                       /* of the layers that have one; 0: none has */
    double norm_eps;
    int64_t chunk;       /* of the layers that have chunks; 0: none has */
    double temper_scale; /* of queries in layers without rotation (mdp_attention); 0: none */
    int64_t temper_floor;
    double clip; /* bound of queries, keys and values; 0: none */
    double embedding_scale, residual_scale, logit_divisor;
    double attention_scale; /* of q . k */
    bool bias;              /* projections have those biases that the family has names for */
    bool head_bias;
    bool tied;
    double jitter;  /* of sparsemixer */
    bool qk_norm;   /* queries and keys have the family's norms */
    bool normalise; /* weights of the chosen experts are made to add up to 1 */
    mdp_activation activation;
    mdp_quantisation quantisation;
    mdp_layer_config *layers; /* [n_layer] */
} mdp_config;

/* Read everything but the layers, the rope and the quantisation from a parsed config.json; `path` names that file in
 * errors. */
mdp_status mdp_config_read(const json_t *json, const mdp_family *family, const char *path, mdp_config *out);

/* Read what layers differ in (layers.c); n_layer and window are set. config->layers is new, freed by the caller with
 * mdp_free. */
mdp_status mdp_layers_read(const json_t *json, const mdp_family *family, const char *path, mdp_config *config);

/* The keys that say which layers are dense, for error sentences: "a, b". */
void mdp_layers_dense_keys(const mdp_family *family, char *out, size_t n_byte);

/* A whole number, positive (or 0 where it may be); the class default when it is absent. */
mdp_status mdp_config_int(const json_t *json, const mdp_int_key *key, const char *path, int64_t *out);

/* Read how weights of few bits are stored, and refuse those packed by GPTQ, AWQ, bitsandbytes and the like
 * (quantised.c): by config.json, or by tensors that only they have. */
mdp_status mdp_quantisation_read(const json_t *json, const mdp_catalogue *catalogue, const char *path,
                                 mdp_quantisation *out);

/* Read the rope (rope.c); config's sizes are set. out's frequencies are new, freed by the caller with mdp_free. */
mdp_status mdp_rope_read(const json_t *json, const mdp_family *family, const mdp_config *config, const char *path,
                         mdp_rope *out);

/* The value of a key; a dot leads into an object: "ffn_config.moe_top_k". NULL: not there. */
const json_t *mdp_config_get(const json_t *json, const char *key);

#endif
