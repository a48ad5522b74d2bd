/* checkpoint.h - tensors in files, whatever the container: the catalogue of what is there (headers only), panels of
 * logical matrices widened to f32, tokens, and the writers of model.h5 and of a HF directory.
 *
 * Everything readable is an extent {file, offset, bytes, type, shape}; safetensors headers give it, contiguous HDF5
 * datasets give it too (H5Dget_offset). Weights are read by pread only, so any thread may read; HDF5 is called from the
 * main thread only. Nothing of the model is ever held whole. */
#ifndef MDP_CHECKPOINT_H
#define MDP_CHECKPOINT_H

#include "mdp/comm.h"
#include "mdp/profile.h"

/* ---- number formats ------------------------------------------------------------------------------------------ */

typedef enum mdp_dtype { /* safetensors' order, descending element size last: the writer sorts by it */
                         MDP_BOOL,
                         MDP_F4,
                         MDP_F6_E2M3,
                         MDP_F6_E3M2,
                         MDP_U8,
                         MDP_I8,
                         MDP_F8_E5M2,
                         MDP_F8_E4M3,
                         MDP_F8_E8M0,
                         MDP_F8_E4M3FNUZ,
                         MDP_F8_E5M2FNUZ,
                         MDP_I16,
                         MDP_U16,
                         MDP_F16,
                         MDP_BF16,
                         MDP_I32,
                         MDP_U32,
                         MDP_F32,
                         MDP_C64,
                         MDP_F64,
                         MDP_I64,
                         MDP_U64,
                         MDP_N_DTYPE
} mdp_dtype;

const char *mdp_dtype_name(mdp_dtype type); /* "BF16" */
int mdp_dtype_bits(mdp_dtype type);         /* 16 */
bool mdp_dtype_find(const char *name, mdp_dtype *out);
/* Bytes of a tensor of this type and shape; false when they overflow or are no whole number. */
bool mdp_dtype_bytes(mdp_dtype type, int n_dim, const int64_t *shape, int64_t *n_byte);
bool mdp_dtype_widens(mdp_dtype type); /* can a tensor of this type be computed with by itself: f32, f16, bf16 */
/* n stored values -> f32, exact: f32, f16, bf16, and the codes of scaled weights: F8_E4M3, F4 (E2M1, two in a byte, the
 * lower half first), F8_E8M0. An odd last F4 value is the lower half of its byte. Source may be unaligned. */
void mdp_widen(mdp_dtype type, const void *stored, int64_t n, float *out);

/* ---- catalogue ----------------------------------------------------------------------------------------------- */

#define MDP_MAX_DIM 8

/* One stored tensor under its HF name. A stacked HDF5 dataset appears as one tensor per expert. */
typedef struct mdp_tensor {
    const char *name; /* borrowed from the catalogue */
    mdp_dtype type;
    int n_dim;
    int64_t shape[MDP_MAX_DIM];
    int32_t file;   /* index into catalogue->files */
    int64_t offset; /* bytes from the start of that file */
    int64_t n_byte;
    const char *digest; /* checksum that the checkpoint has of it, 32 hex digits; NULL: not known; borrowed */
} mdp_tensor;

typedef enum mdp_container { MDP_HF_FOLDER, MDP_NATIVE } mdp_container;

/* A small file that travels with the weights (tokenizer.json, generation_config.json, *.py, ...). */
typedef struct mdp_side_file {
    const char *name; /* plain basename; borrowed from the catalogue */
    int32_t file;     /* index into catalogue->files */
    int64_t offset, n_byte;
    const char *digest; /* as of a tensor */
} mdp_side_file;

/* What tells a file from another that takes its place, and from itself after a change. */
typedef struct mdp_stamp {
    int64_t n_byte, changed; /* changed: nanoseconds */
    uint64_t device, inode;
} mdp_stamp;
/* Of what is at `path`; links are followed. MDP_IO. */
mdp_status mdp_stamp_take(const char *path, mdp_stamp *out);

typedef struct mdp_catalogue {
    char *path; /* as given by the user */
    mdp_container container;
    int32_t n_file;
    char **files;        /* [n_file] paths; entry used by tensors and side files */
    int64_t *file_bytes; /* [n_file] sizes when opened */
    mdp_stamp *stamps;   /* [n_file] of them, then */
    int64_t n_tensor;
    mdp_tensor *tensors; /* [n_tensor] ascending by name (strcmp) */
    int64_t n_side_file;
    mdp_side_file *side_files; /* ascending by name; by the rule of side_files.c */
    char *config_text;         /* config.json, config_byte bytes and a 0 byte */
    int64_t config_byte;
    char *plan_text;       /* model.h5: the plan that made it; NULL when there is none */
    char *provenance_text; /* model.h5: what determined its bytes; NULL when there is none */
    char *left_out;        /* HF folder: names of what is neither model nor side file, for people; NULL: nothing */
    int64_t tensor_byte;   /* sum over tensors */
    char fingerprint[33];  /* model fingerprint (formats.md); set by mdp_catalogue_fingerprint_all, "" before */
    void *memory;          /* backing store of names; private */
    mdp_digest *digests;   /* what digests of tensors and side files point to, or NULL; private */
} mdp_catalogue;

/* Open a HF folder (single file, shards, index) or one of our .h5 files: rank 0 reads the headers, checks them by the
 * strict rules of safetensors (holes, overlaps, duplicates, trailing bytes, overflow, names outside the folder), and
 * broadcasts. No weight is read. Collective on `comm`. Errors: MDP_BAD_INPUT naming file, tensor and byte. */
mdp_status mdp_catalogue_open_all(const mdp_comm *comm, const char *path, mdp_catalogue **out);
void mdp_catalogue_destroy(mdp_catalogue *catalogue);
/* Is the file a side file of a Hugging Face folder, with no tensor in it? */
bool mdp_catalogue_is_side_file(const mdp_catalogue *catalogue, int32_t file);
/* Are all files with tensors as they were when they were listed? MDP_BAD_INPUT names one that is not. Local: for rank
 * 0, which has listed them; on other nodes the same file may look different. */
mdp_status mdp_catalogue_check(const mdp_catalogue *catalogue);
/* The tensor of that HF name, or NULL. Binary search. Local. */
const mdp_tensor *mdp_catalogue_find(const mdp_catalogue *catalogue, const char *name);
/* Fill catalogue->fingerprint: xxh3_128 over config.json and, by name, type, shape and the digest of the first 4,096
 * bytes of each tensor; independent of sharding and container. The tensors are shared out over the ranks.
 * Collective on `comm`. */
mdp_status mdp_catalogue_fingerprint_all(const mdp_comm *comm, mdp_catalogue *catalogue);

/* ---- reading ------------------------------------------------------------------------------------------------- */

/* Open files of a catalogue for reading: descriptors opened at first use, at most a fixed number kept. Thread-safe. */
typedef struct mdp_reader mdp_reader;
mdp_status mdp_reader_new(const mdp_catalogue *catalogue, mdp_reader **out);
/* One more file, of n_byte bytes, whose content may change while it is not read; *file: its number, after those of the
 * catalogue. Before threads read. */
mdp_status mdp_reader_add(mdp_reader *reader, const char *path, int64_t n_byte, int32_t *file);
const char *mdp_reader_path(const mdp_reader *reader, int32_t file); /* borrowed */
/* Another of the same files, which counts for itself. */
mdp_status mdp_reader_twin(const mdp_reader *reader, mdp_reader **out);
void mdp_reader_destroy(mdp_reader *reader);
/* n_byte bytes of file `file` from `offset`. Thread-safe. A file of another size than when it was catalogued is an
 * error that says so. */
mdp_status mdp_reader_read(mdp_reader *reader, int32_t file, int64_t offset, int64_t n_byte, void *out);
/* Are the files that were read as they were when they were first opened? MDP_BAD_INPUT names one that is not. Local. */
mdp_status mdp_reader_check(mdp_reader *reader);
/* Bytes that somebody on this node will read soon: the system may begin. Only a hint: a failure shows when they are
 * read. From any thread. */
void mdp_reader_announce(mdp_reader *reader, int32_t file, int64_t offset, int64_t n_byte);
const mdp_catalogue *mdp_reader_catalogue(const mdp_reader *reader); /* borrowed */
int64_t mdp_reader_bytes(const mdp_reader *reader);                  /* bytes read so far */
double mdp_reader_seconds(const mdp_reader *reader);                 /* that this took, of all threads together */

/* Weights stored as codes of few bits: a value is its code's times the scale of its block. The stored tensor is a run
 * of matrices [n_row, n_col] (one, or one for each expert), each cut into blocks from its first value; the last blocks
 * may be short. */
typedef struct mdp_scaling {
    const mdp_tensor *tensor;     /* scales, one for each block, in the order of the blocks; borrowed; NULL: none */
    mdp_dtype code;               /* MDP_F8_E4M3 or MDP_F4 */
    int64_t n_row, n_col;         /* of one stored matrix */
    int64_t block_row, block_col; /* of a block */
    bool rounded;                 /* values are rounded to bf16 as they are read */
} mdp_scaling;

struct mdp_mask; /* mask.h */

/* A logical matrix [n_row, n_col] inside a stored tensor: element (r, c) is the value number
 * first + r * row_stride + c * col_stride of the tensor. Hides per-expert, fused, transposed and interleaved layouts.
 * With scales, rows are runs inside stored rows: col_stride is 1 and row_stride whole stored rows. */
typedef struct mdp_matrix {
    const mdp_tensor *tensor; /* borrowed; NULL: absent */
    int64_t n_row, n_col;
    int64_t first, row_stride, col_stride; /* in elements */
    mdp_scaling scaling;
    const struct mdp_mask *mask; /* entries that are read as 0; NULL: none; borrowed */
} mdp_matrix;

/* The whole of a 2-D tensor (or of a 1-D tensor as one row), without scales. */
mdp_matrix mdp_matrix_whole(const mdp_tensor *tensor);
/* The whole of a tensor with scales; rows of all its matrices, one after the other. */
mdp_matrix mdp_matrix_scaled(const mdp_tensor *tensor, const mdp_scaling *scaling);
/* Rows row0 .. row0+n_row-1 as f32 into out [n_row, n_col]. `scratch` holds at least mdp_matrix_scratch bytes.
 * Thread-safe. */
mdp_status mdp_matrix_read(mdp_reader *reader, const mdp_matrix *matrix, int64_t row0, int64_t n_row, void *scratch,
                           float *out);
/* Bytes that this takes from the file. */
int64_t mdp_matrix_read_bytes(const mdp_matrix *matrix, int64_t row0, int64_t n_row);
int64_t mdp_matrix_scratch(const mdp_matrix *matrix, int64_t n_row); /* bytes */
/* The same as values of `type`: MDP_F32, or MDP_BF16 (mdp_round_bf16), which weights stored so are read as they are.
 * out has mdp_matrix_room bytes, more than the values take where they are read as f32 first. */
mdp_status mdp_matrix_read_as(mdp_reader *reader, const mdp_matrix *matrix, mdp_dtype type, int64_t row0, int64_t n_row,
                              void *scratch, void *out);
int64_t mdp_matrix_room(const mdp_matrix *matrix, mdp_dtype type, int64_t n_row);
int64_t mdp_matrix_bytes(const mdp_matrix *matrix); /* stored, scales included; 0 when absent */
/* Announce the bytes from a matrix's first element to its last; nothing where it is absent. */
void mdp_matrix_announce(mdp_reader *reader, const mdp_matrix *matrix);
/* A 1-D tensor (or any matrix) whole, into a new array of n_row * n_col f32; for norms, biases, routers. */
mdp_status mdp_matrix_load(mdp_reader *reader, const mdp_matrix *matrix, float **out);
/* All of a matrix, a few rows at a time, into what is there: its rows, or (by_column) its columns, one every `stride`
 * values of out. */
mdp_status mdp_matrix_read_lines(mdp_reader *reader, const mdp_matrix *matrix, bool by_column, int64_t stride,
                                 float *out);

/* A sequence of panels read ahead by one I/O thread. The reader side fills a ring of buffers in the order of `items`;
 * the consumer (main thread) takes them in that order. */
typedef struct mdp_panel {
    const mdp_matrix *matrix;
    int64_t row0, n_row;
    void *data; /* [n_row, matrix->n_col] of the feed's type; set by the feed; valid until it is released */
} mdp_panel;

typedef struct mdp_panel_feed mdp_panel_feed;

/* A feed that can hold `depth` (>= 2) panels of values of `type` (MDP_F32 or MDP_BF16) that have room in max_byte
 * bytes each (mdp_matrix_room), of the files of `reader` (borrowed; the feed reads by one of its own). Starts the I/O
 * thread, which sleeps while there is nothing to read. One feed serves the whole run. `profile` (borrowed, may be
 * NULL) is told of bytes for the phase in which a sequence is started, and of waiting; it may be looked at after
 * mdp_panel_feed_stop. */
mdp_status mdp_panel_feed_new(const mdp_reader *reader, int depth, mdp_dtype type, int64_t max_byte,
                              mdp_profile *profile, mdp_panel_feed **out);
void mdp_panel_feed_destroy(mdp_panel_feed *feed); /* joins the thread; NULL is allowed */
/* Begin reading items[0..n-1] (copied); each with room in max_byte bytes. Any earlier sequence must have been passed to
 * its end or ended by mdp_panel_feed_stop. */
mdp_status mdp_panel_feed_start(mdp_panel_feed *feed, const mdp_panel *items, int64_t n);
/* Panels `first` .. `first + n - 1` (n: 1 .. depth) of those that have not been passed, waiting for them; out[0..n-1]
 * are set. From any thread, as often as it likes. A panel comes only when those `depth` places before it are released,
 * by somebody. A read error of the I/O thread is returned here. */
mdp_status mdp_panel_feed_wait(mdp_panel_feed *feed, int64_t first, int n, mdp_panel *out);
/* One of n_use users of panels `first` .. `first + n - 1` has done with them: a panel that all have done with, and all
 * before it, is released. From any thread. */
void mdp_panel_feed_release(mdp_panel_feed *feed, int64_t first, int n, int64_t n_use);
/* Nobody needs the first n of those that have not been passed any more; from now on panels are counted from the one
 * after them. While no thread waits. */
void mdp_panel_feed_pass(mdp_panel_feed *feed, int64_t n);
/* Drop what is not passed yet (after an error elsewhere) and make the feed ready for start. */
void mdp_panel_feed_stop(mdp_panel_feed *feed);

/* ---- verifying ----------------------------------------------------------------------------------------------- */

/* What was read. */
typedef struct mdp_verified {
    int64_t n_byte;      /* of all that was compared */
    int64_t n_without;   /* side files of a folder that have no checksum */
    mdp_digest *digests; /* [tensors, then side files] that they equal, "" where there is none; to be freed; NULL after
                          * an error */
} mdp_verified;

typedef void mdp_verified_fn(void *context, int64_t n_byte_done, int64_t n_byte_total);

/* Read every byte of a model.h5, or of all that a HF folder with moe-dist-prune.json says is its, and compare with the
 * checksums there. `shown` (may be NULL) tells progress on rank 0. Collective on `comm`.
 * Errors: MDP_BAD_INPUT naming the first text, tensor or file that differs, is missing, or has no checksum. */
mdp_status mdp_verify_all(const mdp_comm *comm, const mdp_catalogue *catalogue, mdp_verified_fn *shown, void *context,
                          mdp_verified *out);

/* For those who copy from a catalogue: let its tensors and side files know the checksums that the checkpoint has of
 * them, so that the writers compare what they copy; a folder without moe-dist-prune.json has none. What is no tensor is
 * compared now; of a model.h5 *unsealed (rank 0) says that its structure is not as it was written (h5repack changes
 * it), which is for the caller to tell. Collective on `comm`. Errors: as of mdp_verify_all. */
mdp_status mdp_catalogue_checksums_all(const mdp_comm *comm, mdp_catalogue *catalogue, bool *unsealed);

/* Every byte of another HDF5 file of ours (stats.h5) against its seal; *n_byte: how many. Local: rank 0; main thread.
 */
mdp_status mdp_verify_sealed(const char *path, int64_t *n_byte);
/* The same for a reader, which takes a file without a seal as it is: it may be somebody else's. */
mdp_status mdp_verify_seal_if_any(const char *path);

/* ---- tokens -------------------------------------------------------------------------------------------------- */

/* tokens.h5: categories in byte order of name, sequences in file order; sequences without tokens are left out. Offsets
 * are held on every rank, ids are not. */
typedef struct mdp_tokens {
    char *path;
    int n_category;
    char **category;            /* [n_category] */
    int64_t n_sequence;         /* over all categories */
    int64_t *offset;            /* [n_sequence + 1] first token of each sequence, counted over all categories */
    int32_t *sequence_category; /* [n_sequence] */
    int64_t *category_offset;   /* [n_category + 1] first token of each category in that count */
    int64_t n_token;            /* offset[n_sequence] */
    char fingerprint[33];       /* xxh3_128 over the categories used: names, ids, offsets; empty in memory */
    int64_t file;               /* HDF5 file id, open for reading; private */
    uint32_t *ids;              /* [n_token] owned; NULL: in the file */
} mdp_tokens;

/* Open and check a tokens file. `categories` (NULL: all) selects by names as mdp_next_name reads them. vocab_size
 * bounds the ids. Rank 0 reads every id once (hash, check) and broadcasts the offsets. Collective on `comm`. Errors:
 * MDP_BAD_INPUT: an id >= vocab_size (names category, sequence, position), decreasing or overrunning offsets, no
 * tokens, an unknown category. */
mdp_status mdp_tokens_open_all(const mdp_comm *comm, const char *path, const char *categories, int64_t vocab_size,
                               mdp_tokens **out);
void mdp_tokens_destroy(mdp_tokens *tokens); /* NULL is allowed */
/* ids of tokens first .. first+n-1 (counted over the categories used). Local; main thread (HDF5). */
mdp_status mdp_tokens_read(const mdp_tokens *tokens, int64_t first, int64_t n, uint32_t *out);
/* Tokens whose ids are in memory, all 0 until the caller fills them: n_sequence [n_category] sequences of each
 * category, lengths of all sequences. `path` stands in errors. Local. */
mdp_status mdp_tokens_new_in_memory(const char *path, int n_category, const char *const *names,
                                    const int64_t *n_sequence, const int64_t *lengths, mdp_tokens **out);
/* A new text of whole sequences, drawn by the seed until they have n_token tokens (all, where there are fewer), in
 * their order; its ids are in memory. Local. */
mdp_status mdp_tokens_sample(const mdp_tokens *tokens, int64_t n_token, uint64_t seed, mdp_tokens **out);

/* tasks.h5: multiple choice. The same on every rank. */
typedef struct mdp_tasks {
    mdp_tokens *tokens;   /* a category for each task, a sequence for each choice: context, then choice; in memory */
    int64_t *given;       /* [tokens->n_sequence] tokens of the context, >= 1 */
    int64_t *n_byte;      /* [tokens->n_sequence] UTF-8 bytes of the choice, >= 1 */
    int64_t n_item;       /* of all tasks */
    int64_t *item_choice; /* [n_item + 1] first sequence of each item */
    int64_t *answer;      /* [n_item] the right choice, counted in the item */
    int64_t *task_item;   /* [tokens->n_category + 1] first item of each task */
} mdp_tasks;

/* Read and check a tasks file: rank 0 reads, all get it. Collective on `comm`.
 * Errors: MDP_BAD_INPUT, naming task and item: an id >= vocab_size, no context, an empty choice, fewer than two
 * choices, an answer that is none of them, offsets that do not fit. */
mdp_status mdp_tasks_open_all(const mdp_comm *comm, const char *path, int64_t vocab_size, mdp_tasks **out);
void mdp_tasks_destroy(mdp_tasks *tasks); /* NULL is allowed */

/* ---- writing ------------------------------------------------------------------------------------------------- */

struct mdp_recast; /* recast.h */

/* A run of bytes copied from a stored tensor, or of four bytes again and again, or made of a stored tensor. A source of
 * no bytes is only compared with its checksum. */
typedef struct mdp_segment {
    const mdp_tensor *source;        /* NULL: `fill` */
    int64_t offset, n_byte;          /* inside the source tensor, */
    const struct mdp_recast *recast; /* or, not NULL, inside what is made of it; borrowed */
    uint32_t fill;                   /* the four bytes, the lowest first: one value of 4 bytes, two of 2; mostly 0 */
} mdp_segment;

/* One tensor of the result, under its HF name: the concatenation of its segments. */
typedef struct mdp_output_tensor {
    char *name; /* owned */
    mdp_dtype type;
    int n_dim;
    int64_t shape[MDP_MAX_DIM];
    int64_t n_byte;
    int64_t n_segment;
    mdp_segment *segments; /* owned */
    const mdp_tensor *of;  /* the source's tensor that it is, or is a part of; borrowed; NULL: none */
    /* where it goes in model.h5: experts of one layer and projection are stacked */
    char *stack;                  /* owned; HF name pattern with {expert}, or NULL when the tensor stands alone */
    mdp_expert_t expert;          /* its place in the stack (new numbering); -1 when it stands alone */
    mdp_expert_t original_expert; /* number in the source checkpoint (merges: lowest member); -1 */
} mdp_output_tensor;

/* Everything that a checkpoint writer needs; made by transform from a plan, or by `export` from a model.h5. */
typedef struct mdp_output {
    const mdp_catalogue *source; /* borrowed */
    int64_t n_tensor;
    mdp_output_tensor *tensors; /* ascending by name; owned */
    char *config_text;          /* owned; patched config.json */
    int64_t config_byte;
    struct mdp_recast *recasts; /* what segments point to; owned; NULL: none do */
    int64_t n_recast;           /* of them */
    char *plan_text;            /* owned; plan.json as written; may be NULL */
    char *provenance_text;      /* owned; JSON: what determines the bytes (formats.md) */
    char model_type[64];
    int64_t n_layer;
    bool uniform;        /* every layer keeps the same number of experts */
    int64_t tensor_byte; /* sum over tensors */
} mdp_output;
void mdp_output_destroy(mdp_output *output); /* NULL is allowed */

typedef void mdp_written_fn(void *context, int64_t n_byte_done,
                            int64_t n_byte_total); /* progress on rank 0; may be NULL */

typedef struct mdp_write_options {
    const char *name;    /* what the result will be called, for words and the journal; NULL: its path */
    int64_t shard_byte;  /* HF: largest shard, bytes */
    int64_t buffer_byte; /* memory for copying per rank, bytes */
    mdp_written_fn *written;
    void *context;
    struct mdp_resume *resume; /* what makes it possible to stop and to go on; NULL: it is not */
    mdp_profile *profile;      /* counts times and bytes; NULL: not wanted */
} mdp_write_options;

/* Writers compare what they copy with the checksums that its source has (mdp_catalogue_checksums_all): MDP_BAD_INPUT
 * names the tensor or side file that differs. Of a tensor of which a part is copied all is read for that.
 *
 * Write a model.h5 at `path`, a place of the caller's own (mdp_workshop_path), where what an earlier try has left is
 * removed: rank 0 creates all datasets; all ranks copy the tensors they own (balanced by bytes) with parallel HDF5,
 * independent transfers; rank 0 writes checksums and last `complete`; agree; fsync. On any error nothing is left, but
 * with options->resume what a run that goes on can use. Collective on `comm`. */
mdp_status mdp_write_native_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *path,
                                const mdp_write_options *options);
/* The same for a HF folder (safetensors shards, index, config.json, side files, moe-dist-prune.json with provenance and
 * checksums). Collective on `comm`. */
mdp_status mdp_write_hf_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *folder,
                            const mdp_write_options *options);

/* Is `folder` complete and what mdp_write_hf_all would write, as far as its record and sizes tell? Local: rank 0. */
mdp_status mdp_hf_is_of(const char *folder, const mdp_output *output, int64_t shard_byte, bool *same);

/* The checksums that the tensors of `output`, and then the side files of its source, would have: all is read, nothing
 * written. *out is new on rank 0, NULL elsewhere. Collective on `comm`. */
mdp_status mdp_output_hash_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, int64_t buffer_byte,
                               mdp_digest **out);

/* What a rank does of writing. */
typedef struct mdp_write_share {
    int64_t bytes_read, bytes_written; /* from the model; of the result */
} mdp_write_share;
/* What writing would take, from headers alone. */
typedef struct mdp_write_cost {
    mdp_write_share *shares; /* [size] of the ranks; sums are what a run counts, and the sizes of the files; owned */
    int64_t copying;         /* bytes of memory: buffers of the rank that takes most */
    int64_t beside;          /* of rank 0, which has most: lists of tensors, checksums, texts, what HDF5 keeps */
} mdp_write_cost;
void mdp_write_cost_free(mdp_write_cost *cost);
/* Of mdp_write_native_all and mdp_write_hf_all on `size` ranks. `exactly`: what HDF5 adds to the data is found out by
 * making the file without its data, for a moment and in memory where that can be; else it is left out. `out` is to be
 * freed on error too. Local; main thread. */
mdp_status mdp_write_native_cost(const mdp_output *output, const mdp_write_options *options, int size, bool exactly,
                                 mdp_write_cost *out);
mdp_status mdp_write_hf_cost(const mdp_output *output, const mdp_write_options *options, int size, mdp_write_cost *out);
/* Close an HDF5 file (`file` is its hid_t) that this rank alone has written, in any case. `status` is what happened so
 * far, returned when it is an error; what could not be written out is then dropped, because HDF5 1.10 crashes at the
 * end of a program that closes such a file by H5Fclose alone. MDP_IO when metadata cannot be written. Local; main
 * thread. */
mdp_status mdp_hdf5_close_written(int64_t file, const char *path, mdp_status status);
/* A run of bytes of a file. */
typedef struct mdp_run {
    int64_t offset, n_byte;
} mdp_run;
/* The seal of an HDF5 file of ours (formats.md): make room for it in the open file (its hid_t); when the file is closed
 * fill it in, for all bytes but the runs covered [n], which have checksums of their own. Local: rank 0; main thread. */
mdp_status mdp_seal_make(int64_t file, const char *path);
mdp_status mdp_seal_write(const char *path, const mdp_run *covered, int64_t n);
#endif
