/* option_table.c - every option of every command: one row each. Help, parsing, ranges, configuration files and
 * effective-config.json read this table. */
#include "command/command.h"
#include "command/recipes.h"
#include "command/recovering.h"
#include "mdp/others.h"
#include "mdp/refit.h"

#define FORWARD (COMMAND_RUN | COMMAND_OBSERVE | COMMAND_EVAL | COMMAND_REFIT | COMMAND_RECOVER)
#define CHOOSES (COMMAND_RUN | COMMAND_PLAN)
#define WRITES                                                                                                         \
    (COMMAND_RUN | COMMAND_OBSERVE | COMMAND_PLAN | COMMAND_MERGE | COMMAND_REFIT | COMMAND_APPLY | COMMAND_EVAL |     \
     COMMAND_EXPORT | COMMAND_FRONTIER | COMMAND_RECOVER)
#define MEASURES (FORWARD | COMMAND_FRONTIER)
#define BUDGETS (CHOOSES | COMMAND_FRONTIER)
#define REFITS (COMMAND_RUN | COMMAND_REFIT)
#define TARGETS (REFITS | COMMAND_RECOVER)
#define PRUNES (COMMAND_RUN | COMMAND_APPLY)
#define CONTINUES (WRITES & ~(unsigned)COMMAND_PLAN)
#define GROUP_KEEP 1
#define GROUP_SPARSE 2
#define MAX_EXPERT 1000000

static const char *method_name(int i) {
    if (i < mdp_n_criterion) return mdp_criteria[i].name;
    return i < mdp_n_criterion + mdp_n_recipe ? mdp_recipes[i - mdp_n_criterion].name : NULL;
}

static const char *method_help(int i) {
    return i < mdp_n_criterion ? mdp_criteria[i].help : mdp_recipes[i - mdp_n_criterion].help;
}

static const char *channel_norms_name(int i) {
    return mdp_channel_norms_names[i];
}

/* None, and then those that there are. */
static const char *similarity_name(int i) {
    return i == 0 ? "none" : i <= MDP_N_SIMILARITY ? mdp_similarities[i - 1].name : NULL;
}

static const char *similarity_help(int i) {
    return i == 0 ? "nothing is compared" : mdp_similarities[i - 1].help;
}

/* All but the list, which --keep-file asks for. */
static const char *budget_name(int i) {
    return i < MDP_BUDGET_LIST ? mdp_budget_names[i] : NULL;
}

static const char *normalise_name(int i) {
    return mdp_score_normalise_names[i];
}

static const char *soft_mask_name(int i) {
    return mdp_soft_mask_names[i];
}

static const char *pruned_route_name(int i) {
    return mdp_pruned_route_names[i];
}

static const char *propagate_name(int i) {
    static const char *const names[] = {[PROPAGATE_ORIGINAL] = "original", [PROPAGATE_PRUNED] = "pruned", NULL};
    return names[i];
}

static const char *refit_target_name(int i) {
    static const char *const names[] = {[MDP_REFIT_RESIDUAL] = "residual", [MDP_REFIT_OUTPUT] = "output", NULL};
    return names[i];
}

static const char *changed_type_name(int i) {
    static const char *const names[] = {[CHANGED_STORED] = "stored", [CHANGED_BF16] = "bf16", NULL};
    return names[i];
}

static const char *refit_inputs_name(int i) {
    static const char *const names[] = {[PROPAGATE_ORIGINAL] = "original", [PROPAGATE_PRUNED] = "pruned", NULL};
    return names[i];
}

/* 0: experts go; else mdp_merge_weights, counted from 1. */
static const char *merge_name(int i) {
    return i == 0 ? "none" : mdp_merge_weights_names[i - 1];
}

static const char *group_name(int i) {
    return mdp_group_method_names[i];
}

static const char *group_by_name(int i) {
    return i < MDP_N_SIMILARITY ? mdp_similarities[i].name : NULL;
}

static const char *group_by_help(int i) {
    return mdp_similarities[i].help;
}

static const char *linkage_name(int i) {
    return mdp_linkage_names[i];
}

static const char *align_name(int i) {
    static const char *const names[] = {"none", "weight", NULL};
    return names[i];
}

/* 0: none; else mdp_mask_by, counted from 1. */
static const char *mask_name(int i) {
    return i == 0 ? "none" : mdp_mask_by_names[i - 1];
}

static const char *mask_help(int i) {
    static const char *const help[] = {"weights stay as they are",
                                       "norms over the expert's tokens, times their weights (MoE-Pruner, 2410.12013)",
                                       "norms over the expert's tokens (Wanda, 2306.11695)", "size alone"};
    return help[i];
}

static const char *neurons_name(int i) {
    return i == 0 ? "none" : mdp_neuron_score_names[i - 1];
}

static const char *neurons_help(int i) {
    static const char *const texts[] = {"all stay",
                                        "mean over an expert's tokens of h_j (W_d[:,j] . y) / norm2(y), the neuron's "
                                        "share of the output (after TENP, 2606.09885)",
                                        "mean of h_j^2 times norm2(W_d[:,j])^2, the neuron's energy"};
    return texts[i];
}

static const char *merge_router_name(int i) {
    return mdp_merge_router_names[i];
}

/* All but `every`, which is no search. */
static const char *subset_search_name(int i) {
    return i < MDP_SUBSETS_EVERY ? mdp_subset_search_names[i] : NULL;
}

static const char *other_name(int i) {
    return mdp_other_names[i];
}

static const char *other_help(int i) {
    return mdp_other_help[i];
}

static const char *format_name(int i) {
    static const char *const names[] = {
        [FORMAT_HDF5] = "hdf5", [FORMAT_SAFETENSORS] = "safetensors", [FORMAT_BOTH] = "both", NULL};
    return names[i];
}

static const char *non_uniform_name(int i) {
    static const char *const names[] = {[NON_UNIFORM_REFUSE] = "refuse",
                                        [NON_UNIFORM_PAD] = "pad",
                                        [NON_UNIFORM_PER_LAYER_CONFIG] = "per-layer-config",
                                        NULL};
    return names[i];
}

static const char *retype_name(int i) {
    return mdp_retype_names[i];
}

static const char *mtp_name(int i) {
    static const char *const names[] = {[MTP_DROP] = "drop", [MTP_PRUNE] = "prune", NULL};
    return names[i];
}

static const char *loss_name(int i) {
    static const char *const names[] = {"layer", NULL};
    return names[i];
}

static const char *train_name(int i) {
    return mdp_train_names[i];
}

static const char *schedule_name(int i) {
    return mdp_schedule_names[i];
}

/* The libraries and the types, and then: measure. */
static const char *gemm_name(int i) {
    return i < MDP_N_GEMM_LIBRARY ? mdp_gemm_library_names[i] : i == MDP_N_GEMM_LIBRARY ? "auto" : NULL;
}

static const char *compute_name(int i) {
    return i < MDP_N_GEMM_TYPE ? mdp_gemm_type_names[i] : i == MDP_N_GEMM_TYPE ? "auto" : NULL;
}

static const char *level_name(int i) {
    static const char *const names[] = {[MDP_LEVEL_ERROR] = "error",
                                        [MDP_LEVEL_WARN] = "warn",
                                        [MDP_LEVEL_INFO] = "info",
                                        [MDP_LEVEL_DEBUG] = "debug",
                                        NULL};
    return names[i];
}

const mdp_option mdp_option_table[N_OPTION] = {
    [OPTION_MODEL] =
        {.name = "model",
         .type = MDP_OPTION_TEXT,
         .value = "PATH",
         .help = "Hugging Face folder or one of our .h5 files; verify: is PATH what this and the plan in it give?",
         .commands = MEASURES | COMMAND_PLAN | COMMAND_MERGE | COMMAND_APPLY | COMMAND_EXPORT | COMMAND_VERIFY,
         .required = MEASURES | COMMAND_MERGE | COMMAND_APPLY | COMMAND_EXPORT,
         .reads = true},
    [OPTION_TOKENS] = {.name = "tokens",
                       .type = MDP_OPTION_TEXT,
                       .value = "FILE",
                       .help = "tokenised text (.h5) that the model is run on; merge: for plans of --merge "
                               "least-squares; verify: are the statistics of this?",
                       .commands = FORWARD | COMMAND_PLAN | COMMAND_MERGE | COMMAND_VERIFY,
                       .required = FORWARD,
                       .reads = true},
    [OPTION_EVAL_TOKENS] = {.name = "eval-tokens",
                            .type = MDP_OPTION_TEXT,
                            .value = "FILE",
                            .help = "tokenised text on which original and pruned model are compared",
                            .commands = COMMAND_RUN | COMMAND_FRONTIER,
                            .required = COMMAND_FRONTIER,
                            .reads = true},
    [OPTION_TASKS] = {.name = "tasks",
                      .type = MDP_OPTION_TEXT,
                      .value = "FILE",
                      .help = "multiple-choice items (.h5) that original and pruned model answer",
                      .commands = COMMAND_RUN | COMMAND_EVAL,
                      .reads = true},
    [OPTION_CATEGORIES] =
        {.name = "categories",
         .type = MDP_OPTION_TEXT,
         .value = "A,B:2,...",
         .help = "only these categories of the text; run and plan: with weights in the choice; \\, and \\: stand "
                 "for a comma and a colon in a name",
         .commands = FORWARD | COMMAND_PLAN | COMMAND_MERGE | COMMAND_VERIFY},
    [OPTION_SIMILARITY] = {.name = "similarity",
                           .type = MDP_OPTION_TEXT,
                           .value = "A,B,...",
                           .fallback = "none",
                           .help = "how alike the experts of each layer are, kept in the statistics",
                           .choice = similarity_name,
                           .choice_help = similarity_help,
                           .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_PROBE_TOKENS] = {.name = "probe-tokens",
                             .type = MDP_OPTION_SIZE,
                             .value = "N",
                             .fallback = "1024",
                             .help = "similarities over the probe: run every expert on N tokens, drawn by --seed",
                             .minimum = 2,
                             .maximum = 1 << 15,
                             .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_SUBSETS] = {.name = "subsets",
                        .type = MDP_OPTION_TEXT,
                        .value = "N,M,...",
                        .help = "method naee: also measure what keeping sets of N experts loses, for every set",
                        .commands = COMMAND_OBSERVE},
    [OPTION_MAX_SUBSETS] = {.name = "max-subsets",
                            .type = MDP_OPTION_SIZE,
                            .value = "N",
                            .fallback = "20000",
                            .help = "method naee: try every set where there are no more than N of one size",
                            .minimum = 1,
                            .maximum = 1 << 24,
                            .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_SUBSET_SEARCH] = {.name = "subset-search",
                              .type = MDP_OPTION_CHOICE,
                              .fallback = "greedy",
                              .help = "method naee, where there are more: drop one expert at a time from the best set "
                                      "so far, or (beam) from the best 8",
                              .choice = subset_search_name,
                              .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_NAEE_BATCH] = {.name = "naee-batch",
                           .type = MDP_OPTION_INTEGER,
                           .value = "N",
                           .fallback = "1",
                           .help = "method naee: sequences whose squared errors are added before the root is taken",
                           .minimum = 1,
                           .maximum = 1000000000,
                           .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_NAEE_TOKENS] = {.name = "naee-tokens",
                            .type = MDP_OPTION_SIZE,
                            .value = "N",
                            .help = "method naee: measure on whole sequences of about N tokens in all, drawn by --seed "
                                    "(default: all)",
                            .minimum = 1,
                            .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_CHANNEL_NORMS] = {.name = "channel-norms",
                              .type = MDP_OPTION_CHOICE,
                              .fallback = "none",
                              .help = "norms of what each expert's matrices read, for masks (doc/masks.md): of tokens "
                                      "times their weights, of tokens alone, or both",
                              .choice = channel_norms_name,
                              .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_NEURON_SCORES] = {.name = "neuron-scores",
                              .type = MDP_OPTION_FLAG,
                              .help = "sums for every neuron of every expert, by which experts can be cut "
                                      "(doc/neurons.md); down projections are multiplied with twice",
                              .commands = COMMAND_RUN | COMMAND_OBSERVE},
    [OPTION_STATS] = {.name = "stats",
                      .type = MDP_OPTION_TEXT_LIST,
                      .value = "FILE[:WEIGHT]",
                      .help = "statistics written by observe; those of several files are added",
                      .commands = COMMAND_PLAN | COMMAND_FRONTIER,
                      .reads = true},
    [OPTION_PLAN] = {.name = "plan",
                     .type = MDP_OPTION_TEXT_LIST,
                     .value = "FILE",
                     .help = "plan.json to apply (eval: in memory, nothing is written), to merge, refit or recover",
                     .commands = COMMAND_APPLY | COMMAND_EVAL | COMMAND_MERGE | COMMAND_REFIT | COMMAND_RECOVER,
                     .required = COMMAND_APPLY | COMMAND_MERGE | COMMAND_REFIT | COMMAND_RECOVER,
                     .reads = true},
    [OPTION_METHOD] = {.name = "method",
                       .type = MDP_OPTION_CHOICE,
                       .help = "how experts are scored; the lowest go first",
                       .choice = method_name,
                       .choice_help = method_help,
                       .commands = CHOOSES,
                       .required = CHOOSES},
    [OPTION_SOFT_MASK] = {.name = "soft-mask",
                          .type = MDP_OPTION_CHOICE,
                          .fallback = "chosen",
                          .help = "method soft: applied weights, or probabilities of routed or of all tokens",
                          .choice = soft_mask_name,
                          .commands = CHOOSES},
    [OPTION_PRETRAINED] = {.name = "pretrained",
                           .type = MDP_OPTION_TEXT,
                           .value = "PATH",
                           .help = "router-norm-change: the model before fine-tuning; only its routers are read",
                           .commands = CHOOSES,
                           .reads = true},
    [OPTION_WORST_CATEGORY] = {.name = "worst-category",
                               .type = MDP_OPTION_FLAG,
                               .help = "score an expert by the category of text that needs it most",
                               .commands = CHOOSES},
    [OPTION_PROTECT_SUPER_EXPERTS] = {.name = "protect-super-experts",
                                      .type = MDP_OPTION_FLAG,
                                      .help = "keep the few experts with massive activations (arXiv 2507.23279)",
                                      .commands = CHOOSES},
    [OPTION_PRUNED_ROUTE] = {.name = "pruned-route",
                             .type = MDP_OPTION_CHOICE,
                             .fallback = "slice",
                             .help = "slice: take pruned experts out; zero: they stay and return 0, the router is "
                                     "whole (after arXiv 2405.16646; saves nothing by itself)",
                             .choice = pruned_route_name,
                             .commands = CHOOSES},
    [OPTION_KEEP] = {.name = "keep",
                     .type = MDP_OPTION_INTEGER,
                     .value = "N",
                     .help = "experts kept in each layer",
                     .minimum = 1,
                     .maximum = MAX_EXPERT,
                     .commands = CHOOSES,
                     .group = GROUP_KEEP},
    [OPTION_KEEP_RATIO] = {.name = "keep-ratio",
                           .type = MDP_OPTION_RATIO,
                           .value = "R",
                           .help = "keep round(R * experts) in each layer, half up",
                           .commands = CHOOSES,
                           .group = GROUP_KEEP},
    [OPTION_PRUNE_RATIO] = {.name = "prune-ratio",
                            .type = MDP_OPTION_RATIO,
                            .value = "R",
                            .help = "remove round(R * experts) from each layer, half up",
                            .commands = CHOOSES,
                            .group = GROUP_KEEP},
    [OPTION_KEEP_FILE] = {.name = "keep-file",
                          .type = MDP_OPTION_TEXT,
                          .value = "FILE",
                          .help = "how many experts each layer keeps, as JSON: {\"0\": 6, \"1\": 4, ...}",
                          .commands = CHOOSES,
                          .group = GROUP_KEEP,
                          .reads = true},
    [OPTION_KEEP_MULTIPLE_OF] = {.name = "keep-multiple-of",
                                 .type = MDP_OPTION_INTEGER,
                                 .value = "N",
                                 .help = "keep a multiple of N in each layer, for serving on N devices",
                                 .minimum = 1,
                                 .maximum = MAX_EXPERT,
                                 .commands = BUDGETS},
    [OPTION_TOP_K] = {.name = "top-k",
                      .type = MDP_OPTION_INTEGER,
                      .value = "K",
                      .help = "let each token use only its K best experts; alone, or with a number to keep",
                      .minimum = 1,
                      .maximum = MAX_EXPERT,
                      .commands = CHOOSES},
    [OPTION_ROUNDS] = {.name = "rounds",
                       .type = MDP_OPTION_INTEGER,
                       .value = "R",
                       .fallback = "1",
                       .help = "remove experts in R equal steps, and observe what is left before each",
                       .minimum = 1,
                       .maximum = 1000,
                       .commands = COMMAND_RUN},
    [OPTION_PROPAGATE] = {.name = "propagate",
                          .type = MDP_OPTION_CHOICE,
                          .fallback = "original",
                          .help = "what layers see while they are judged: the model as it is, or what the pruned "
                                  "layers before them give (twice the expert work)",
                          .choice = propagate_name,
                          .commands = COMMAND_RUN},
    [OPTION_MERGE] = {.name = "merge",
                      .type = MDP_OPTION_CHOICE,
                      .fallback = "none",
                      .help =
                          "experts that do not stay join those that are like them, with these weights (plan: the "
                          "command merge then makes them); representative: the best of each group stays; "
                          "least-squares: as frequency, and then the down projection is fitted to what the members "
                          "give for their tokens; dern: no groups, but neurons of experts that go join those of others",
                      .choice = merge_name,
                      .commands = CHOOSES},
    [OPTION_GROUP] = {.name = "group",
                      .type = MDP_OPTION_CHOICE,
                      .fallback = "hierarchical",
                      .help = "how experts that are alike find each other",
                      .choice = group_name,
                      .commands = CHOOSES},
    [OPTION_GROUP_BY] = {.name = "group-by",
                         .type = MDP_OPTION_CHOICE,
                         .fallback = "output-routed-mean-euclidean",
                         .help = "what experts are alike by; run observes it, and for plan the statistics must have it",
                         .choice = group_by_name,
                         .choice_help = group_by_help,
                         .commands = CHOOSES},
    [OPTION_LINKAGE] = {.name = "linkage",
                        .type = MDP_OPTION_CHOICE,
                        .fallback = "average",
                        .help = "group hierarchical: the distance of two groups",
                        .choice = linkage_name,
                        .commands = CHOOSES},
    [OPTION_MAX_GROUP] = {.name = "max-group",
                          .type = MDP_OPTION_INTEGER,
                          .value = "N",
                          .help = "group centroid: most experts that become one (default: any number)",
                          .minimum = 1,
                          .maximum = MAX_EXPERT,
                          .commands = CHOOSES},
    [OPTION_KEEP_WHOLE] = {.name = "keep-whole",
                           .type = MDP_OPTION_RATIO,
                           .value = "R",
                           .help = "this part of the experts of the result, the best, stay as they are",
                           .commands = CHOOSES},
    [OPTION_FREQUENCY_PENALTY] = {.name = "frequency-penalty",
                                  .type = MDP_OPTION_FLAG,
                                  .help = "experts that many tokens use are further apart: distances times both shares",
                                  .commands = CHOOSES},
    [OPTION_ALIGN] = {.name = "align",
                      .type = MDP_OPTION_CHOICE,
                      .fallback = "none",
                      .help = "weight: neurons of merged experts are matched by their weights first",
                      .choice = align_name,
                      .commands = CHOOSES},
    [OPTION_MERGE_ROUTER] = {.name = "merge-router",
                             .type = MDP_OPTION_CHOICE,
                             .fallback = "mean",
                             .help = "router row of a merged expert: mean by the weights, sum, the longest of its "
                                     "members' rows, or that of the member that most tokens chose",
                             .choice = merge_router_name,
                             .commands = CHOOSES},
    [OPTION_MERGE_RIDGE] = {.name = "merge-ridge",
                            .type = MDP_OPTION_REAL,
                            .value = "X",
                            .fallback = "0.001",
                            .help = "merge least-squares: how much a fit is held back, as a part of the mean square of "
                                    "activations",
                            .commands = COMMAND_RUN | COMMAND_MERGE},
    [OPTION_DERN_ALPHA] = {.name = "dern-alpha",
                           .type = MDP_OPTION_REAL,
                           .value = "X",
                           .fallback = "0.6",
                           .help = "merge dern: neurons go where a neuron's cosine with them is above this",
                           .commands = CHOOSES},
    [OPTION_MASK] = {.name = "mask",
                     .type = MDP_OPTION_CHOICE,
                     .fallback = "none",
                     .help = "set single weights of the experts that stay to 0, those of least size times the norm of "
                             "their channel; without a number to keep, all experts stay (doc/masks.md)",
                     .choice = mask_name,
                     .choice_help = mask_help,
                     .commands = CHOOSES},
    [OPTION_SPARSITY] = {.name = "sparsity",
                         .type = MDP_OPTION_RATIO,
                         .value = "R",
                         .help = "mask: this share of each row goes, rounded down",
                         .commands = CHOOSES,
                         .group = GROUP_SPARSE},
    [OPTION_NM] = {.name = "nm",
                   .type = MDP_OPTION_TEXT,
                   .value = "N:M",
                   .help = "mask: of each M columns of a row N stay, such as 2:4",
                   .commands = CHOOSES,
                   .group = GROUP_SPARSE},
    [OPTION_NEURONS] = {.name = "neurons",
                        .type = MDP_OPTION_CHOICE,
                        .fallback = "none",
                        .help = "cut neurons inside the experts that stay, all experts to one width",
                        .choice = neurons_name,
                        .choice_help = neurons_help,
                        .commands = CHOOSES},
    [OPTION_KEEP_NEURONS] = {.name = "keep-neurons",
                             .type = MDP_OPTION_TEXT,
                             .value = "N|R",
                             .help = "neurons that each expert keeps, or the part of them (up to 1: a part)",
                             .commands = CHOOSES},
    [OPTION_WIDTH_MULTIPLE_OF] = {.name = "width-multiple-of",
                                  .type = MDP_OPTION_INTEGER,
                                  .value = "N",
                                  .fallback = "1",
                                  .help = "round the neurons that stay down to a multiple of N; kernels that serve "
                                          "models like 64 or 128",
                                  .minimum = 1,
                                  .maximum = 1 << 20,
                                  .commands = CHOOSES},
    [OPTION_REFIT] = {.name = "refit",
                      .type = MDP_OPTION_TEXT,
                      .value = "HOW",
                      .help = "fit the down projections of what is left to what was there: auto, joint, sweeps:S, "
                              "diagonal or none (default: none for run, auto for refit)",
                      .commands = REFITS},
    [OPTION_RIDGE] = {.name = "ridge",
                      .type = MDP_OPTION_TEXT,
                      .value = "X",
                      .fallback = "auto",
                      .help = "how much a fit is held back, as a part of the mean square of activations; auto: by text "
                              "that is left out in turn",
                      .commands = REFITS},
    [OPTION_REFIT_TOKENS] = {.name = "refit-tokens",
                             .type = MDP_OPTION_SIZE,
                             .value = "N",
                             .help = "fit to about so many tokens, drawn by --seed (default: all)",
                             .minimum = 1,
                             .commands = TARGETS},
    [OPTION_REFIT_TARGET] = {.name = "refit-target",
                             .type = MDP_OPTION_CHOICE,
                             .fallback = "residual",
                             .help = "what a layer is to give: the original's output, or that and what the residual "
                                     "stream has lost before it",
                             .choice = refit_target_name,
                             .commands = TARGETS},
    [OPTION_REFIT_INPUTS] = {.name = "refit-inputs",
                             .type = MDP_OPTION_CHOICE,
                             .fallback = "pruned",
                             .help = "what a layer is fitted on: what the fitted layers before it give, or the "
                                     "original's inputs",
                             .choice = refit_inputs_name,
                             .commands = TARGETS},
    [OPTION_REFIT_HOLDOUT] = {.name = "refit-holdout",
                              .type = MDP_OPTION_TEXT,
                              .value = "R",
                              .fallback = "0.1",
                              .help = "part of the sequences that is not fitted to, but measured (0: none)",
                              .commands = TARGETS},
    [OPTION_CHANGED_TYPE] = {.name = "changed-type",
                             .type = MDP_OPTION_CHOICE,
                             .fallback = "stored",
                             .help = "type of experts that are merged or fitted, where the checkpoint has FP8 or "
                                     "MXFP4: quantised anew as it stores them, or bf16, and then all of its weights",
                             .choice = changed_type_name,
                             .commands = REFITS | COMMAND_MERGE},
    [OPTION_BUDGET] = {.name = "budget",
                       .type = MDP_OPTION_CHOICE,
                       .fallback = "uniform",
                       .help = "equal numbers, the best of all layers together, more in deeper layers, or (merges) "
                               "fewer where experts are more alike",
                       .choice = budget_name,
                       .commands = BUDGETS},
    [OPTION_MIN_KEEP] = {.name = "min-keep",
                         .type = MDP_OPTION_INTEGER,
                         .value = "N",
                         .help =
                             "budgets that differ between layers: never fewer in one (default: the experts each token "
                             "uses)",
                         .minimum = 1,
                         .maximum = MAX_EXPERT,
                         .commands = BUDGETS},
    [OPTION_NORMALISE] = {.name = "normalise",
                          .type = MDP_OPTION_CHOICE,
                          .fallback = "none",
                          .help = "budget global: how scores of layers are made comparable",
                          .choice = normalise_name,
                          .commands = BUDGETS},
    [OPTION_SEED] = {.name = "seed",
                     .type = MDP_OPTION_INTEGER,
                     .value = "N",
                     .fallback = "0",
                     .help = "of everything that is drawn at random",
                     .commands = BUDGETS | COMMAND_OBSERVE | COMMAND_REFIT | COMMAND_RECOVER},
    [OPTION_OUT] = {.name = "out",
                    .type = MDP_OPTION_TEXT,
                    .value = "PATH",
                    .help = "what to write: a folder for run, apply and export (or a model.h5, where the name ends in "
                            ".h5), else a file",
                    .commands = WRITES,
                    .required = WRITES},
    [OPTION_FORMAT] = {.name = "format",
                       .type = MDP_OPTION_CHOICE,
                       .fallback = "hdf5",
                       .help = "model.h5, a Hugging Face folder hf, or both",
                       .choice = format_name,
                       .commands = PRUNES},
    [OPTION_NON_UNIFORM] = {.name = "non-uniform",
                            .type = MDP_OPTION_CHOICE,
                            .fallback = "refuse",
                            .help = "Hugging Face folder of layers that keep different numbers: pad adds experts that "
                                    "are never chosen, where the router has a bias that makes that exact; "
                                    "per-layer-config gives each layer its number in config.json, which few loaders "
                                    "take",
                            .choice = non_uniform_name,
                            .commands = PRUNES | COMMAND_EXPORT},
    [OPTION_MTP] = {.name = "mtp",
                    .type = MDP_OPTION_CHOICE,
                    .fallback = "drop",
                    .help = "layers that predict tokens further ahead: leave them out, or prune them to as many "
                            "experts, by the method where it reads weights alone, else by aimer",
                    .choice = mtp_name,
                    .commands = PRUNES},
    [OPTION_LAYERS] = {.name = "layers",
                       .type = MDP_OPTION_TEXT,
                       .value = "A-B",
                       .help = "write the tensors of these layers alone: for rehearsals, no loader takes them",
                       .commands = COMMAND_APPLY},
    [OPTION_TYPE] = {.name = "type",
                     .type = MDP_OPTION_CHOICE,
                     .help =
                         "write all real numbers in this type (default: as they are stored), rounded once; fp8: E4M3 "
                         "in blocks of 128 x 128 for linear layers, bf16 for the rest",
                     .choice = retype_name,
                     .commands = COMMAND_EXPORT},
    [OPTION_SHARD_SIZE] = {.name = "shard-size",
                           .type = MDP_OPTION_SIZE,
                           .value = "BYTES",
                           .fallback = "5GB",
                           .help = "largest safetensors file",
                           .minimum = 1,
                           .commands = PRUNES | COMMAND_EXPORT},
    [OPTION_OVERWRITE] = {.name = "overwrite",
                          .type = MDP_OPTION_FLAG,
                          .help = "replace outputs that exist; run: all of an earlier run in --out",
                          .commands = WRITES},
    [OPTION_BREAK_LOCK] = {.name = "break-lock",
                           .type = MDP_OPTION_FLAG,
                           .help =
                               "take over an output whose run is gone for certain, where that cannot be seen (it ran "
                               "on another host)",
                           .commands = WRITES},
    [OPTION_DUMP] = {.name = "dump",
                     .type = MDP_OPTION_TEXT,
                     .value = "FILE",
                     .help = "also write logits, hidden states and routing (small inputs only)",
                     .commands = COMMAND_EVAL},
    [OPTION_JSON] = {.name = "json",
                     .type = MDP_OPTION_FLAG,
                     .help = "make stdout one JSON document",
                     .commands = CONTINUES | COMMAND_INSPECT | COMMAND_INFO},
    [OPTION_PEAK] = {.name = "peak",
                     .type = MDP_OPTION_FLAG,
                     .help = "measure matrix products for a second",
                     .commands = COMMAND_INFO},
    [OPTION_DRY_RUN] = {.name = "dry-run",
                        .type = MDP_OPTION_FLAG,
                        .help = "say what it would take, from headers alone, and stop",
                        .commands = WRITES & ~(unsigned)COMMAND_PLAN},
    [OPTION_RANKS] = {.name = "ranks",
                      .type = MDP_OPTION_INTEGER,
                      .value = "P",
                      .help = "--dry-run: of so many ranks, instead of those that mpirun started",
                      .minimum = 1,
                      .maximum = 1000000,
                      .commands = CONTINUES},
    [OPTION_RANKS_PER_NODE] = {.name = "ranks-per-node",
                               .type = MDP_OPTION_INTEGER,
                               .value = "N",
                               .help = "--dry-run: with so many ranks on each node (default: all on one)",
                               .minimum = 1,
                               .maximum = 1000000,
                               .commands = CONTINUES},
    [OPTION_PROFILE] = {.name = "profile",
                        .type = MDP_OPTION_FLAG,
                        .help =
                            "say where the time of each pass went: seconds, bytes and operations of each phase; also "
                            "written to profile.json in the folder --out, or beside the file (export: folder) --out",
                        .commands = CONTINUES},
    [OPTION_RESUME] = {.name = "resume",
                       .type = MDP_OPTION_FLAG,
                       .help = "go on with what the same command left when it was stopped; on any number of ranks",
                       .commands = CONTINUES},
    [OPTION_CHECKPOINT_EVERY] = {.name = "checkpoint-every",
                                 .type = MDP_OPTION_SECONDS,
                                 .value = "TIME",
                                 .fallback = "10min",
                                 .help = "save what is done so far this often, for --resume (90s, 10min, 2h)",
                                 .commands = CONTINUES},
    [OPTION_MAX_SECONDS] = {.name = "max-seconds",
                            .type = MDP_OPTION_SECONDS,
                            .value = "TIME",
                            .help = "save and stop before this time is over (exit 75); SIGUSR1 does so at once",
                            .commands = CONTINUES},
    [OPTION_GFLOPS] = {.name = "gflops-per-rank",
                       .type = MDP_OPTION_REAL,
                       .value = "X",
                       .help = "estimate hours with this speed instead of measuring",
                       .commands = MEASURES | COMMAND_MERGE},
    [OPTION_MEMORY] = {.name = "memory",
                       .type = MDP_OPTION_SIZE,
                       .value = "BYTES",
                       .help = "memory that each rank may use; bounds the batch and the buffers of copying",
                       .minimum = 1,
                       .commands = WRITES},
    [OPTION_BATCH_TOKENS] = {.name = "batch-tokens",
                             .type = MDP_OPTION_SIZE,
                             .value = "N",
                             .help = "tokens that go through the layers together (default: what memory holds)",
                             .minimum = 1,
                             .commands = (MEASURES & ~(unsigned)COMMAND_RECOVER) | COMMAND_PLAN},
    [OPTION_THREADS] = {.name = "threads",
                        .type = MDP_OPTION_INTEGER,
                        .value = "N",
                        .help = "threads of each rank (default: OMP_NUM_THREADS, or its share of the cores)",
                        .minimum = 1,
                        .maximum = 1024,
                        .commands = MEASURES | COMMAND_PLAN | COMMAND_MERGE | COMMAND_INFO},
    [OPTION_GEMM] = {.name = "gemm",
                     .type = MDP_OPTION_CHOICE,
                     .fallback = "openblas",
                     .help = "library of matrix products; auto: the fastest here (results differ in the last bits)",
                     .choice = gemm_name,
                     .commands = MEASURES | COMMAND_PLAN | COMMAND_MERGE | COMMAND_INFO},
    [OPTION_COMPUTE] = {.name = "compute",
                        .type = MDP_OPTION_CHOICE,
                        .fallback = "f32",
                        .help = "products with weights; bf16 rounds both sides (oneDNN; fast only on processors with "
                                "bf16 units); auto: the faster of the two here",
                        .choice = compute_name,
                        .commands = MEASURES | COMMAND_PLAN | COMMAND_MERGE | COMMAND_INFO},
    [OPTION_ALLOW_NONFINITE] =
        {.name = "allow-nonfinite",
         .type = MDP_OPTION_FLAG,
         .help = "let activations that are NaN or infinite count as 0 and go on (default: stop, naming "
                 "layer, expert, token and weight)",
         .commands = MEASURES | COMMAND_PLAN | COMMAND_MERGE},
    [OPTION_CONFIG] = {.name = "config",
                       .type = MDP_OPTION_TEXT,
                       .value = "FILE",
                       .help = "take options from an effective-config.json; the command line wins",
                       .commands = COMMAND_ALL,
                       .reads = true},
    [OPTION_QUIET] = {.name = "quiet", .type = MDP_OPTION_FLAG, .help = "errors only", .commands = COMMAND_ALL},
    [OPTION_LOG_LEVEL] = {.name = "log-level",
                          .type = MDP_OPTION_CHOICE,
                          .fallback = "info",
                          .help = "what stderr shows",
                          .choice = level_name,
                          .commands = COMMAND_ALL},
    [OPTION_METHODS] = {.name = "methods",
                        .type = MDP_OPTION_TEXT,
                        .value = "A,B,...",
                        .help = "methods to compare, as plan --method knows them; recipes that only choose, too",
                        .commands = COMMAND_FRONTIER,
                        .required = COMMAND_FRONTIER},
    [OPTION_RATIOS] = {.name = "ratios",
                       .type = MDP_OPTION_TEXT,
                       .value = "FROM:TO:N",
                       .fallback = "0.1:0.8:8",
                       .help = "shares of the experts to remove: N at equal distances, or a list like 0.25,0.5",
                       .commands = COMMAND_FRONTIER},
    [OPTION_WITHIN] = {.name = "within",
                       .type = MDP_OPTION_TEXT,
                       .value = "X%",
                       .help = "name the smallest result whose perplexity is at most X% above the original's",
                       .commands = COMMAND_FRONTIER},
    [OPTION_OVERLAP] = {.name = "overlap",
                        .type = MDP_OPTION_FLAG,
                        .help = "also measure what next-token distributions share with the original's, 1 - total "
                                "variation; computes the head twice",
                        .commands = COMMAND_EVAL | COMMAND_FRONTIER},
    [OPTION_FOR] = {.name = "for",
                    .type = MDP_OPTION_CHOICE,
                    .help = "write not a plan, but what other software reads (doc/formats.md)",
                    .choice = other_name,
                    .choice_help = other_help,
                    .commands = COMMAND_PLAN},
    [OPTION_LOSS] = {.name = "loss",
                     .type = MDP_OPTION_CHOICE,
                     .fallback = "layer",
                     .help = "layer: the error of what each layer gives, by itself",
                     .choice = loss_name,
                     .commands = COMMAND_RECOVER},
    [OPTION_TRAIN] = {.name = "train",
                      .type = MDP_OPTION_CHOICE,
                      .fallback = "moe",
                      .help = "what is trained: rows of routers, experts, or both (moe)",
                      .choice = train_name,
                      .commands = COMMAND_RECOVER},
    [OPTION_EPOCHS] = {.name = "epochs",
                       .type = MDP_OPTION_INTEGER,
                       .value = "N",
                       .fallback = "2",
                       .help = "how often a layer is trained on all of the text",
                       .minimum = 1,
                       .maximum = 100000,
                       .commands = COMMAND_RECOVER},
    [OPTION_STEP_TOKENS] = {.name = "step-tokens",
                            .type = MDP_OPTION_SIZE,
                            .value = "N",
                            .fallback = "4096",
                            .help = "tokens of a step, in whole sequences drawn by --seed",
                            .minimum = 1,
                            .commands = COMMAND_RECOVER},
    [OPTION_LR] = {.name = "lr",
                   .type = MDP_OPTION_TEXT,
                   .value = "X",
                   .fallback = "1e-3",
                   .help = "largest learning rate of AdamW",
                   .commands = COMMAND_RECOVER},
    [OPTION_WARMUP] = {.name = "warmup",
                       .type = MDP_OPTION_TEXT,
                       .value = "R",
                       .fallback = "0.05",
                       .help = "part of the steps in which the rate rises to --lr (0: none)",
                       .commands = COMMAND_RECOVER},
    [OPTION_SCHEDULE] = {.name = "schedule",
                         .type = MDP_OPTION_CHOICE,
                         .fallback = "cosine",
                         .help = "how it falls after that",
                         .choice = schedule_name,
                         .commands = COMMAND_RECOVER},
    [OPTION_WEIGHT_DECAY] = {.name = "weight-decay",
                             .type = MDP_OPTION_TEXT,
                             .value = "X",
                             .fallback = "0",
                             .help = "a step multiplies weights by 1 - rate * X",
                             .commands = COMMAND_RECOVER},
    [OPTION_CLIP] = {.name = "clip",
                     .type = MDP_OPTION_TEXT,
                     .value = "X",
                     .fallback = "1",
                     .help = "largest norm of a layer's gradient (0: any)",
                     .commands = COMMAND_RECOVER},
#ifdef MDP_DEBUG_HOOKS
    [OPTION_FAULT_EVERY] = {.name = "fault-every",
                            .type = MDP_OPTION_INTEGER,
                            .value = "N",
                            .fallback = "0",
                            .help = "make every N-th fallible operation fail (0: none)",
                            .commands = COMMAND_ALL},
    [OPTION_FAULT_SEED] = {.name = "fault-seed",
                           .type = MDP_OPTION_INTEGER,
                           .value = "N",
                           .fallback = "0",
                           .help = "shifts the first one",
                           .commands = COMMAND_ALL},
    [OPTION_FAULT_KINDS] = {.name = "fault-kinds",
                            .type = MDP_OPTION_TEXT,
                            .value = "A,B,...",
                            .fallback = "io,alloc",
                            .help = "io, alloc, short, enospc, eio; short ones are survived",
                            .commands = COMMAND_ALL},
    [OPTION_FAULT_RANK] = {.name = "fault-rank",
                           .type = MDP_OPTION_TEXT,
                           .value = "R,S,...",
                           .fallback = "-1",
                           .help = "on these ranks only (-1: on all)",
                           .commands = COMMAND_ALL},
    [OPTION_STOP_AT] = {.name = "stop-at",
                        .type = MDP_OPTION_INTEGER,
                        .value = "N",
                        .fallback = "0",
                        .help = "save and stop at the N-th safe point (0: at none)",
                        .commands = CONTINUES},
#endif
};
