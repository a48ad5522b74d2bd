/* command.h - what the commands share: the table of commands, the names of the options, and the session in which a
 * command runs (ranks, options, log, threads, open inputs). Private to src/command and main. */
#ifndef MDP_COMMAND_H
#define MDP_COMMAND_H

#include "mdp/options.h"
#include "mdp/outputs.h"
#include "mdp/pipeline.h"

/* Index of each option in mdp_option_table. */
typedef enum mdp_option_id {
    OPTION_MODEL,
    OPTION_TOKENS,
    OPTION_EVAL_TOKENS,
    OPTION_TASKS,
    OPTION_CATEGORIES,
    OPTION_SIMILARITY,
    OPTION_PROBE_TOKENS,
    OPTION_SUBSETS,
    OPTION_MAX_SUBSETS,
    OPTION_SUBSET_SEARCH,
    OPTION_NAEE_BATCH,
    OPTION_NAEE_TOKENS,
    OPTION_CHANNEL_NORMS,
    OPTION_NEURON_SCORES,
    OPTION_STATS,
    OPTION_PLAN,
    OPTION_METHOD,
    OPTION_SOFT_MASK,
    OPTION_PRETRAINED,
    OPTION_WORST_CATEGORY,
    OPTION_PROTECT_SUPER_EXPERTS,
    OPTION_PRUNED_ROUTE,
    OPTION_KEEP,
    OPTION_KEEP_RATIO,
    OPTION_PRUNE_RATIO,
    OPTION_KEEP_FILE,
    OPTION_KEEP_MULTIPLE_OF,
    OPTION_TOP_K,
    OPTION_ROUNDS,
    OPTION_PROPAGATE,
    OPTION_MERGE,
    OPTION_GROUP,
    OPTION_GROUP_BY,
    OPTION_LINKAGE,
    OPTION_MAX_GROUP,
    OPTION_KEEP_WHOLE,
    OPTION_FREQUENCY_PENALTY,
    OPTION_ALIGN,
    OPTION_MERGE_ROUTER,
    OPTION_MERGE_RIDGE,
    OPTION_DERN_ALPHA,
    OPTION_MASK,
    OPTION_SPARSITY,
    OPTION_NM,
    OPTION_NEURONS,
    OPTION_KEEP_NEURONS,
    OPTION_WIDTH_MULTIPLE_OF,
    OPTION_REFIT,
    OPTION_RIDGE,
    OPTION_REFIT_TOKENS,
    OPTION_REFIT_TARGET,
    OPTION_REFIT_INPUTS,
    OPTION_REFIT_HOLDOUT,
    OPTION_CHANGED_TYPE,
    OPTION_BUDGET,
    OPTION_MIN_KEEP,
    OPTION_NORMALISE,
    OPTION_SEED,
    OPTION_OUT,
    OPTION_FORMAT,
    OPTION_NON_UNIFORM,
    OPTION_MTP,
    OPTION_LAYERS,
    OPTION_TYPE,
    OPTION_SHARD_SIZE,
    OPTION_OVERWRITE,
    OPTION_BREAK_LOCK,
    OPTION_DUMP,
    OPTION_JSON,
    OPTION_PEAK,
    OPTION_DRY_RUN,
    OPTION_RANKS,
    OPTION_RANKS_PER_NODE,
    OPTION_PROFILE,
    OPTION_RESUME,
    OPTION_CHECKPOINT_EVERY,
    OPTION_MAX_SECONDS,
    OPTION_GFLOPS,
    OPTION_MEMORY,
    OPTION_BATCH_TOKENS,
    OPTION_THREADS,
    OPTION_GEMM,
    OPTION_COMPUTE,
    OPTION_ALLOW_NONFINITE,
    OPTION_CONFIG,
    OPTION_QUIET,
    OPTION_LOG_LEVEL,
    OPTION_METHODS,
    OPTION_RATIOS,
    OPTION_WITHIN,
    OPTION_OVERLAP,
    OPTION_FOR,
    OPTION_LOSS,
    OPTION_TRAIN,
    OPTION_EPOCHS,
    OPTION_STEP_TOKENS,
    OPTION_LR,
    OPTION_WARMUP,
    OPTION_SCHEDULE,
    OPTION_WEIGHT_DECAY,
    OPTION_CLIP,
#ifdef MDP_DEBUG_HOOKS
    OPTION_FAULT_EVERY,
    OPTION_FAULT_SEED,
    OPTION_FAULT_KINDS,
    OPTION_FAULT_RANK,
    OPTION_STOP_AT,
#endif
    N_OPTION
} mdp_option_id;

/* Bit of each command in the table of options. */
enum {
    COMMAND_RUN = 1u << 0,
    COMMAND_OBSERVE = 1u << 1,
    COMMAND_PLAN = 1u << 2,
    COMMAND_APPLY = 1u << 3,
    COMMAND_EVAL = 1u << 4,
    COMMAND_EXPORT = 1u << 5,
    COMMAND_INSPECT = 1u << 6,
    COMMAND_INFO = 1u << 7,
    COMMAND_VERIFY = 1u << 8,
    COMMAND_REFIT = 1u << 9,
    COMMAND_MERGE = 1u << 10,
    COMMAND_FRONTIER = 1u << 11,
    COMMAND_RECOVER = 1u << 12,
    COMMAND_ALL = (1u << 13) - 1
};

extern const mdp_option mdp_option_table[N_OPTION];

/* Indices of the choices of --propagate and --format. */
typedef enum mdp_propagate_choice { PROPAGATE_ORIGINAL, PROPAGATE_PRUNED } mdp_propagate_choice;
typedef enum mdp_format_choice { FORMAT_HDF5, FORMAT_SAFETENSORS, FORMAT_BOTH } mdp_format_choice;
typedef enum mdp_non_uniform_choice {
    NON_UNIFORM_REFUSE,
    NON_UNIFORM_PAD,
    NON_UNIFORM_PER_LAYER_CONFIG
} mdp_non_uniform_choice;
typedef enum mdp_changed_type_choice { CHANGED_STORED, CHANGED_BF16 } mdp_changed_type_choice;
typedef enum mdp_mtp_choice { MTP_DROP, MTP_PRUNE } mdp_mtp_choice;

/* Everything that one command works with. Opened by the functions of session.h; closed by mdp_session_close_all. */
typedef struct mdp_session {
    const mdp_comm *comm;   /* borrowed */
    const mdp_comm *layout; /* what costs are of: comm, or `asked`; borrowed */
    mdp_comm *asked;        /* by --ranks; nobody communicates by it; NULL: not given; owned */
    int64_t at_start;       /* bytes that the largest rank has before anything heavy; the same on every rank */
    int64_t held;           /* bytes that a rank will hold beside that from observing until the end */
    int64_t beside;         /* those, and what libraries come to hold beside the engine */
    int64_t copy_byte;      /* memory for copying into a result; 0: as much as is of use */
    mdp_options *options;   /* owned */
    int n_word;             /* the command line, for report.json */
    char **words;           /* [n_word] borrowed */
    mdp_log *log;           /* owned */
    int n_thread;           /* of this rank */
    char compute[128];      /* what multiplies, and in which numbers: mdp_gemm_describe */
    mdp_gemm *gemm;         /* owned; NULL before mdp_session_choose_compute_all */
    double start;           /* mdp_seconds() when the command began */
    mdp_catalogue *catalogue;
    mdp_model *model;
    mdp_reader *reader;
    mdp_replaced *replaced; /* of the plan that is carried out; NULL: nothing of it stands in plan.h5 */
    mdp_model *mtp_model;   /* its layers that predict tokens further ahead, where they are to stay; else NULL */
    mdp_plan *mtp_plan;     /* what becomes of their experts; NULL: nothing */
    mdp_tokens *tokens;
    mdp_tokens *eval_tokens;
    mdp_tokens *naee_tokens; /* those of --naee-tokens; NULL: all; owned */
    mdp_tasks *tasks;
    mdp_weights *routers; /* read before the decision that needs them (rank 0); owned */
    bool routers_read;
    mdp_keep_entry *keep_list; /* [n_keep] of --keep-file, or made from --top-k alone; owned */
    int64_t n_keep;
    json_t *foretold;          /* what each pass will take, one item a pass; owned */
    json_t *profiles;          /* what --profile writes, one item a pass; NULL: not asked for; owned */
    mdp_resume *resume;        /* resume points; NULL: the command takes none; owned */
    char plans_digest[33];     /* of the texts of all plans read */
    char *recipe;              /* what --method stands for, when it names a recipe; owned */
    mdp_catalogue *pretrained; /* of --pretrained; NULL: not given; owned */
    mdp_places places;         /* what is read and written (rank 0) */
    mdp_workshop *workshop;    /* where --out is made; NULL: nothing is written, or no more; owned */
    mdp_workshop *dump;        /* the same for --dump; owned */
    mdp_names members;         /* results in the folder --out; none: it is the result itself (rank 0) */
    mdp_names stale;           /* results of earlier commands that go with the first of them (rank 0) */
    bool finished;             /* an earlier run of this command has done all */
    bool adopted;              /* what the state folder holds is this command's (rank 0) */
    bool begun;                /* the generation of results is on the record (rank 0) */
    bool published;            /* a result has appeared in this run (rank 0) */
    bool folder_created;       /* this run made the folder --out (rank 0) */
    bool log_created;          /* and its run.log (rank 0) */
    bool widened;              /* the model is taken as if its FP8 and MXFP4 were bf16 */
    bool made_as_stored;       /* a plan that was read has experts made in the checkpoint's type */
    bool stats_made;           /* stats.h5 and plan.json in it are this run's */
    bool plan_made;
} mdp_session;

typedef struct mdp_command {
    const char *name;
    const char *summary;  /* one line */
    const char *argument; /* name of its one argument ("PATH"); NULL: it takes none */
    unsigned bit;
    mdp_status (*run_all)(mdp_session *session); /* collective; the status is the same on every rank */
} mdp_command;

extern const mdp_command mdp_commands[]; /* the first is the default */
extern const int mdp_n_command;

/* The commands, one in each file of the same name. Collective on session->comm. */
mdp_status mdp_command_run_all(mdp_session *session);
mdp_status mdp_command_observe_all(mdp_session *session);
mdp_status mdp_command_plan_all(mdp_session *session);
mdp_status mdp_command_refit_all(mdp_session *session);
mdp_status mdp_command_merge_all(mdp_session *session);
mdp_status mdp_command_recover_all(mdp_session *session);
mdp_status mdp_command_apply_all(mdp_session *session);
mdp_status mdp_command_eval_all(mdp_session *session);
mdp_status mdp_command_frontier_all(mdp_session *session);
mdp_status mdp_command_export_all(mdp_session *session);
mdp_status mdp_command_inspect_all(mdp_session *session);
mdp_status mdp_command_verify_all(mdp_session *session);
mdp_status mdp_command_info_all(mdp_session *session);

/* Find the command that the command line names, run it, and report an error in one sentence on rank 0. The status is
 * the same on every rank. Collective on `comm`. */
mdp_status mdp_command_main_all(mdp_comm *comm, int n_word, char **words);

/* Value of an option of the session. */
static inline const mdp_option_value *mdp_session_option(const mdp_session *session, mdp_option_id id) {
    return &session->options->values[id];
}

#endif
