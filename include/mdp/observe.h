/* observe.h - statistics: what is summed over rows and tokens while the forward pass runs, and stats.h5.
 * A statistic is a row of the table in src/observe/statistics.c; scores (score.h) are formulas of the sums. */
#ifndef MDP_OBSERVE_H
#define MDP_OBSERVE_H

#include "mdp/resume.h"
#include "mdp/subsets.h"

typedef enum mdp_statistic_id {
    MDP_GATE_SUM,            /* sum over T_e of g_te */
    MDP_NORM_SUM,            /* sum over T_e of norm2(y_te) */
    MDP_GATE_NORM_SUM,       /* sum over T_e of g_te norm2(y_te) */
    MDP_NORM2_SUM,           /* sum over T_e of norm2(y_te)^2 */
    MDP_TURN_SUM,            /* sum over T_e of g_te norm2(y_te) (1 - cos(x_t, y_te)) */
    MDP_SHIFT_SUM,           /* sum over T_e of g_te norm2(y_te) max(1 - cos(u_t, u_t + r_t), 0) */
    MDP_ROUTED_P_SUM,        /* sum over T_e of p_te */
    MDP_ALL_P_SUM,           /* sum over all t of p_te */
    MDP_N_SUM,               /* those above are sums, those below maxima */
    MDP_MAX_ABS = MDP_N_SUM, /* max over T_e and channels of abs(y_te) */
    MDP_N_STATISTIC
} mdp_statistic_id;
#define MDP_N_MAX (MDP_N_STATISTIC - MDP_N_SUM)

typedef enum mdp_merge { MDP_MERGE_SUM, MDP_MERGE_MAX } mdp_merge;

typedef struct mdp_statistic {
    const char *name;    /* dataset name in stats.h5 */
    const char *meaning; /* one sentence */
    const char *unit;
    const char *source; /* paper */
    mdp_merge merge;    /* over tiles, ranks and files */
    bool all_tokens;    /* samples are all tokens, else the routed rows */
} mdp_statistic;
extern const mdp_statistic mdp_statistics[MDP_N_STATISTIC];

/* An element of a vector sum: like mdp_exact with fewer limbs, limb i of weight 2^(32 i - 64). Vectors have too many
 * elements for ten limbs each, and their elements are f32 outputs, for which this grid is fine enough. */
#define MDP_SHORT_LIMBS 3
typedef struct mdp_short_sum {
    int64_t limb[MDP_SHORT_LIMBS];
} mdp_short_sum;
/* Add value, rounded once to a multiple of 2^-64. Several threads may add at once. false (and no change) when it is
 * not finite or |value| >= 2^60. */
bool mdp_short_add(mdp_short_sum *sum, double value);
void mdp_short_normalise(mdp_short_sum *sum); /* carry: one form for one value */
double mdp_short_value(const mdp_short_sum *sum);

/* A vector for each expert of a layer, [n_expert, width], in exact sums. */
typedef enum mdp_vector_id {
    MDP_OUTPUT_SUM,          /* [d_model] sum over T_e of y; always collected, the others for similarities alone */
    MDP_GATED_OUTPUT_SUM,    /* [d_model] sum over T_e of g y */
    MDP_PAIR_COUNT,          /* [n_expert] tokens that chose both; on the diagonal n_e */
    MDP_LOGIT_PRODUCT,       /* [n_expert] sum over all t of z_ti z_tj, z before any bias */
    MDP_ROUTER_PRODUCT,      /* [n_expert] inner products of router rows */
    MDP_WEIGHT_PRODUCT,      /* [n_expert] inner products of the three matrices */
    MDP_ALIGNED_PRODUCT,     /* [n_expert] the same after the best permutation of the neurons of one of the two */
    MDP_SURROGATE_PRODUCT,   /* [n_expert] inner products of W_d (W_g o W_u), o elementwise */
    MDP_PROBE_OUTPUT_SUM,    /* [d_model] sum over the probe's t of y */
    MDP_PROBE_COSINE_SUM,    /* [n_expert] sum over the probe's t of cos(y_ti, y_tj) */
    MDP_CKA_LINEAR_PRODUCT,  /* [n_expert] inner products of centred kernels of y over the probe, each of norm 1 */
    MDP_CKA_RBF_PRODUCT,     /* [n_expert] the same of other kernels */
    MDP_GATED_INPUT_SQUARE,  /* [d_model] sum over T_e of (g x)^2; these four with channel norms */
    MDP_GATED_HIDDEN_SQUARE, /* [d_ff] sum over T_e of (g h)^2 */
    MDP_INPUT_SQUARE,        /* [d_model] sum over T_e of x^2 */
    MDP_HIDDEN_SQUARE,       /* [d_ff] sum over T_e of h^2 */
    MDP_NEURON_SHARE_SUM,    /* [d_ff] sum over T_e of h_j (W_d[:,j] . y) / norm2(y) */
    MDP_NEURON_SQUARE_SUM,   /* [d_ff] sum over T_e of h_j^2 */
    MDP_NEURON_COLUMN,       /* [d_ff] norm2(W_d[:,j])^2 */
    MDP_N_VECTOR
} mdp_vector_id;

/* What becomes of a vector when files are joined. */
typedef enum mdp_vector_join {
    MDP_JOIN_SUM,  /* sums over tokens: added */
    MDP_JOIN_SAME, /* of the model, not of the text */
    MDP_JOIN_NONE  /* of one sample of tokens and no other: dropped */
} mdp_vector_join;

/* Numbers of a vector for an expert. */
typedef enum mdp_vector_span { MDP_SPAN_MODEL, MDP_SPAN_EXPERTS, MDP_SPAN_NEURONS } mdp_vector_span;

typedef struct mdp_vector {
    const char *name; /* dataset name in stats.h5 */
    const char *meaning, *unit, *source;
    mdp_vector_span span; /* d_model, n_expert (a symmetric matrix), d_ff */
    bool late;            /* complete with one step after the layer's last batch, else it grows with every batch */
    mdp_vector_join join;
} mdp_vector;
extern const mdp_vector mdp_vectors[MDP_N_VECTOR];

/* ---- similarity ------------------------------------------------------------------------------------------------ */

/* How alike two experts of a layer are: a matrix [n_expert, n_expert] made from one of the vectors. */
typedef enum mdp_similarity_id {
    MDP_OUTPUT_MEAN_EUCLIDEAN,
    MDP_OUTPUT_MEAN_COSINE,
    MDP_OUTPUT_ROUTED_MEAN_EUCLIDEAN,
    MDP_OUTPUT_ROUTED_MEAN_COSINE,
    MDP_OUTPUT_COSINE,
    MDP_CKA_LINEAR,
    MDP_CKA_RBF,
    MDP_WEIGHT_EUCLIDEAN,
    MDP_WEIGHT_COSINE,
    MDP_WEIGHT_ALIGNED_EUCLIDEAN,
    MDP_WEIGHT_ALIGNED_COSINE,
    MDP_WEIGHT_SURROGATE,
    MDP_ROUTER_LOGIT,
    MDP_ROUTER_ROW,
    MDP_CO_ACTIVATION,
    MDP_GATED_OUTPUT_LOGIT,
    MDP_N_SIMILARITY
} mdp_similarity_id;

/* What must be seen, beside what is observed anyway. */
typedef enum mdp_similarity_needs {
    MDP_NEEDS_ROUTED_SUMS, /* nothing: the sums over routed tokens have it */
    MDP_NEEDS_LOGITS,      /* the router's logits or choices of every token */
    MDP_NEEDS_PROBE,       /* every expert on the same tokens */
    MDP_NEEDS_WEIGHTS
} mdp_similarity_needs;

typedef struct mdp_similarity {
    const char *name; /* as --similarity and stats.h5 know it */
    const char *help; /* one line */
    const char *source;
    bool is_distance; /* 0 is alike; else a similarity, 1 is alike, or */
    bool is_negative; /* 0 is alike and nothing is above: minus a distance */
    mdp_similarity_needs needs;
    mdp_vector_id vector; /* what it is made from */
    mdp_vector_id other;  /* and this, which is the same where there is no other */
} mdp_similarity;
extern const mdp_similarity mdp_similarities[MDP_N_SIMILARITY];

#define MDP_PROBE_TOKENS 1024 /* unless the user says otherwise */

/* Norms of the channels that matrices of experts read: bits. */
typedef enum mdp_channel_norms {
    MDP_NORMS_NONE = 0,
    MDP_NORMS_GATED = 1, /* each token times its weight g */
    MDP_NORMS_PLAIN = 2,
    MDP_NORMS_BOTH = 3
} mdp_channel_norms;
extern const char *const mdp_channel_norms_names[]; /* indexed by mdp_channel_norms; NULL at the end */

typedef struct mdp_similarity_request {
    unsigned wanted; /* a bit for each mdp_similarity_id; 0: none */
    mdp_channel_norms norms;
    int64_t probe_tokens; /* tokens that every expert is run on, drawn by seed: at most; 0: no wanted one needs them */
    uint64_t seed;
    bool neurons; /* sums for every neuron as well */
} mdp_similarity_request;

/* "a,b,..." or "none" -> the set. MDP_USAGE with the names that there are. Local. */
mdp_status mdp_similarity_parse(const char *text, unsigned *wanted);
/* The set as such a text; new. Local. */
mdp_status mdp_similarity_print(unsigned wanted, char **text);
/* A request in the one form that it is compared and stored in. */
mdp_similarity_request mdp_similarity_request_of(unsigned wanted, int64_t probe_tokens, uint64_t seed,
                                                 mdp_channel_norms norms);
/* Bits of the vectors that one similarity is made from, and of those that a request takes. */
unsigned mdp_similarity_sources(mdp_similarity_id id);
unsigned mdp_similarity_vectors(const mdp_similarity_request *request);
/* Tell a pass over n_token tokens what it makes n_rank ranks hold. */
void mdp_similarity_enlarge(const mdp_model *model, const mdp_similarity_request *request, int64_t n_token, int n_rank,
                            mdp_pass *pass);

/* ---- statistics ------------------------------------------------------------------------------------------------ */

/* Statistics of one MoE layer; experts numbered as in the model. */
typedef struct mdp_layer_stats {
    int64_t layer; /* index of the layer in the model */
    int32_t n_expert, top_k;
    int64_t d_ff;            /* neurons of the largest expert; 0: not known (only what is of neurons needs it) */
    int32_t n_group, n_open; /* groups of experts, and how many of them a token sees (mdp_router_rule) */
    int64_t *counts;         /* [n_category, n_expert] rows routed */
    mdp_exact *sums;         /* [MDP_N_SUM, n_category, n_expert], normalised */
    double *maxima;          /* [MDP_N_MAX, n_category, n_expert], >= 0 */
    /* [n_expert, width] each, of all categories together; NULL where it is not held. Square ones are symmetric. */
    mdp_short_sum *vectors[MDP_N_VECTOR];
    double *similarity[MDP_N_SIMILARITY]; /* [n_expert, n_expert]; NULL before mdp_stats_make_similarity */
    int n_subsets;
    mdp_subsets *subsets; /* [n_subsets] ascending by size */
} mdp_layer_stats;

/* One of the files that statistics were joined from. */
typedef struct mdp_stats_part {
    char tokens_fingerprint[33];
    int64_t n_token;
    double weight;
} mdp_stats_part;

/* What stats.h5 holds. The sums are complete on rank 0 after mdp_collector_finish_all. */
typedef struct mdp_stats {
    char model_fingerprint[33], tokens_fingerprint[33];
    char model_type[64];
    char compute[128]; /* what multiplied, as mdp_gemm_describe says; empty: not known */
    int64_t d_model;
    int64_t n_token;
    mdp_similarity_request similarity; /* what was collected for similarities */
    double n_probe;                    /* tokens of the probe, each times its file's weight; 0: there is none */
    bool pruned_inputs; /* by pruned propagation: what each layer saw had passed the pruned layers before it */
    int n_category;
    char **category;         /* [n_category] ascending by byte order; equal names only after a weighted join */
    int64_t *category_token; /* [n_category] tokens of each */
    double *category_weight; /* [n_category] how much each counts; NULL: all 1 */
    char *subsets;   /* how sets of experts were measured, as mdp_subset_request_print says it; NULL: none were */
    int64_t n_layer; /* MoE layers */
    mdp_layer_stats *layers; /* ascending by layer */
    int n_part;              /* 0: not joined */
    mdp_stats_part *parts;   /* [n_part] */
} mdp_stats;

/* An empty one for a model and tokens: names, fingerprints, and zeroed arrays for every MoE layer. Local. */
mdp_status mdp_stats_new(const mdp_model *model, const mdp_tokens *tokens, const mdp_similarity_request *request,
                         mdp_stats **out);
/* Numbers of a vector of an expert. */
int64_t mdp_vector_width(mdp_vector_id id, int32_t n_expert, int64_t d_model, int64_t d_ff);
/* Arrays of one layer, zeroed, without vectors. Local. */
mdp_status mdp_layer_stats_allocate(mdp_layer_stats *layer, int n_category);
void mdp_stats_destroy(mdp_stats *stats); /* NULL is allowed */
/* Bytes that statistics of a model take: in memory of the largest rank while they are collected, and in stats.h5. */
int64_t mdp_stats_memory(const mdp_model *model, int n_category, int n_rank, const mdp_similarity_request *request);
int64_t mdp_stats_file_bytes(const mdp_model *model, int n_category, const mdp_similarity_request *request);

/* Bytes that similarities take of a rank beside that, with n_token tokens and n_thread threads. */
int64_t mdp_similarity_memory(const mdp_model *model, const mdp_similarity_request *request, int64_t n_token,
                              int n_rank, int n_thread);
/* What they make every rank of a layout do beside the pass, from headers alone: ranks [layout->size], added to. Local.
 */
void mdp_similarity_cost(const mdp_comm *layout, const mdp_model *model, const mdp_similarity_request *request,
                         int64_t n_token, mdp_rank_cost *ranks);

/* ---- collecting ------------------------------------------------------------------------------------------------ */

/* The observers of one forward pass of the model as it is. Everything they add is integers or maxima, so neither the
 * order of tiles and tokens nor the thread or rank that had them can show in the result. */
typedef struct mdp_collector mdp_collector;
/* What a collector works with; borrowed. */
typedef struct mdp_collecting {
    const mdp_model *model;
    mdp_reader *reader;
    mdp_gemm *gemm; /* for n_thread threads */
    int n_thread;
    bool allow_nonfinite; /* values that are not finite count as 0 */
} mdp_collecting;
/* Adds to `stats`, which stays the caller's, what it asks for. Local. MDP_BAD_INPUT: experts of a layer differ in width
 * and their weights are to be compared. */
mdp_status mdp_collector_new(const mdp_collecting *with, mdp_stats *stats, mdp_collector **out);
void mdp_collector_destroy(mdp_collector *collector); /* NULL is allowed */
mdp_observers mdp_collector_observers(mdp_collector *collector);
/* The model is seen through a view (borrowed; NULL: as it is): what tokens number by the view is counted for the
 * experts of the model. */
void mdp_collector_use_view(mdp_collector *collector, const mdp_view *view);
/* Tell how tokens are cut (borrowed), before anything else. */
void mdp_collector_cut(mdp_collector *collector, const mdp_partition *partition);
/* Tell whose tokens the next layers see. Local. */
mdp_status mdp_collector_begin_batch(mdp_collector *collector, const mdp_engine *engine);
/* After each layer of each batch: bring the layer's vector sums to the rank that keeps them. Collective on `comm`.
 * MDP_BAD_INPUT: a sum is not finite or out of range (names layer, expert and statistic). */
mdp_status mdp_collector_layer_all(const mdp_comm *comm, mdp_collector *collector, int64_t layer);
/* For a resume point: bring every layer's sums to the rank that keeps its vectors, and leave nothing elsewhere.
 * Collective on `comm`. */
mdp_status mdp_collector_gather_all(const mdp_comm *comm, mdp_collector *collector);
/* What has been collected when `layer` layers of the model have been done in batch number `batch` (makes room for
 * vectors where they are to be kept). Local. */
mdp_status mdp_collector_describe(const mdp_comm *comm, mdp_collector *collector, int64_t batch, int64_t layer,
                                  mdp_point *point);
/* Is there anything to collect in a layer of the model? */
bool mdp_collector_sees(const mdp_collector *collector, int64_t layer);
/* Merge all ranks' statistics of a layer at rank 0, in normal form, after its last batch; vectors stay where they are.
 * Collective on `comm`. */
mdp_status mdp_collector_finish_layer_all(const mdp_comm *comm, mdp_collector *collector, int64_t layer);
/* The same for all layers that were not finished one by one. Collective on `comm`. */
mdp_status mdp_collector_finish_all(const mdp_comm *comm, mdp_collector *collector);

/* ---- stats.h5 -------------------------------------------------------------------------------------------------- */

/* Write a new file at `path`, a place of the caller's own (mdp_workshop_path); byte-identical for equal content. Rank 0
 * writes; vectors come from the ranks that hold them, layer by layer. Collective on `comm`. */
mdp_status mdp_stats_write_all(const mdp_comm *comm, const mdp_stats *stats, const char *path);
/* Read and check a stats.h5, without its vectors. Local: rank 0 calls it. MDP_BAD_INPUT: not such a file, newer
 * version, incomplete. */
mdp_status mdp_stats_read(const char *path, mdp_stats **out);
/* Add vectors of the same file: a bit for each mdp_vector_id. Local. MDP_BAD_INPUT: it does not hold one of them. */
mdp_status mdp_stats_read_vectors(const char *path, mdp_stats *stats, unsigned wanted);

/* ---- using ----------------------------------------------------------------------------------------------------- */

/* Statistics of the same model over several texts, as if observed in one pass: sums and maxima by category name. With
 * weights [n] that are not all 1 (each > 0) the categories of every file stay apart, and category_weight says how much
 * they count. `paths` name the files in errors. Vectors are joined when all have them. Local. MDP_BAD_INPUT: of another
 * model. */
mdp_status mdp_stats_join(mdp_stats *const *all, const double *weight, const char *const *paths, int n,
                          mdp_stats **out);
/* Sum over categories, each times weight[c] (NULL: category_weight, or 1), of a statistic or of the counts. Unweighted
 * sums are exact before the one rounding to double. */
double mdp_stats_sum(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight);
double mdp_stats_count(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, const double *weight);
/* Make a similarity of every layer, for mdp_stats_similarity. Vectors are there (mdp_stats_read_vectors,
 * mdp_similarities[id].vector). Local. MDP_BAD_INPUT: they are not, or the files that were joined have none in common.
 */
mdp_status mdp_stats_make_similarity(mdp_stats *stats, mdp_similarity_id id);
/* [n_expert, n_expert] row-major and symmetric; the statistics' own. NULL before it is made. A cosine with an expert
 * that never gave anything but 0 is 0, also with itself. */
const double *mdp_stats_similarity(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id);
/* What output-mean-... or output-routed-mean-... compare: out [n_expert, d_model], the mean output of each expert (0
 * where it has no tokens). Local. MDP_BAD_INPUT as above. */
mdp_status mdp_stats_mean_outputs(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, double *out);
/* The norms of the channels that an expert's gate and up (hidden: down) read: out [d_model] (hidden: [d_ff]), the
 * roots of the sums (gated: each token times its weight), rounded to f32; 1 for an expert that no token reached, which
 * *seen then tells. Vectors are there (mdp_stats_read_vectors, mdp_channel_norms_vectors). Local. */
void mdp_stats_channel_norms(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, bool gated, bool hidden,
                             float *out, bool *seen);
/* Bits of the vectors that norms are made from. */
unsigned mdp_channel_norms_vectors(mdp_channel_norms norms);
/* Largest over categories with weight[c] > 0 (NULL: all) of a maximum. */
double mdp_stats_max(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight);

#endif
