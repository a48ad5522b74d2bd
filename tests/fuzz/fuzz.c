/* fuzz.c - what the fuzz targets share: a process of one rank, a folder for files, and what must hold after a call. */
#include "fuzz.h"

#include <dirent.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void fuzz_require(bool good, const char *sentence) {
    if (good) return;
    fprintf(stderr, "fuzz: %s\n", sentence);
    abort();
}

static void end_mpi(void) {
    MPI_Finalize();
}

const mdp_comm *fuzz_comm(void) {
    static mdp_comm *comm = NULL;
    if (comm) return comm;
    /* alone: no daemon is started for a process that spawns nothing */
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 1);
    MPI_Init(NULL, NULL);
    atexit(end_mpi);
    mdp_status status = mdp_comm_new_all(MPI_COMM_SELF, &comm);
    fuzz_require(status.code == MDP_OK, status.text);
    return comm;
}

/* ---- files --------------------------------------------------------------------------------------------------- */

static char folder[64];

static void remove_folder(void) {
    DIR *directory = opendir(folder);
    char path[512];
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        (void)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        (void)unlink(path);
    }
    if (directory) closedir(directory);
    (void)rmdir(folder);
}

const char *fuzz_path(const char *name) {
    if (!folder[0]) {
        (void)snprintf(folder, sizeof folder, "%s/mdp-fuzz-XXXXXX",
                       access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        fuzz_require(mkdtemp(folder) != NULL, "no folder for files");
        atexit(remove_folder);
    }
    char *path = NULL;
    fuzz_require(asprintf(&path, "%s/%s", folder, name) > 0, "out of memory");
    return path;
}

void fuzz_write(const char *path, const void *data, size_t n_byte) {
    FILE *file = fopen(path, "wb");
    fuzz_require(file && fwrite(data, 1, n_byte, file) == n_byte && fclose(file) == 0, "a file cannot be written");
}

/* ---- what must hold ------------------------------------------------------------------------------------------ */

static const H5I_type_t watched[] = {H5I_FILE, H5I_GROUP, H5I_DATATYPE, H5I_DATASPACE, H5I_DATASET, H5I_ATTR};
enum { N_WATCHED = sizeof watched / sizeof watched[0] };
static hsize_t n_open[N_WATCHED];

void fuzz_begin(void) {
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    for (int i = 0; i < N_WATCHED; i++) H5Inmembers(watched[i], &n_open[i]);
}

void fuzz_end(const mdp_status *status) {
    for (int i = 0; i < N_WATCHED; i++) {
        hsize_t n = 0;
        H5Inmembers(watched[i], &n);
        if (n != n_open[i])
            fprintf(stderr, "fuzz: kind %d, %d more are open: %s\n", i, (int)(n - n_open[i]), status->text);
        fuzz_require(n == n_open[i], "an HDF5 object was not closed");
    }
    if (status->code == MDP_OK) return;
    size_t length = strlen(status->text);
    fuzz_require(status->code == MDP_BAD_INPUT || status->code == MDP_IO, status->text);
    fuzz_require(length > 10 && length < sizeof status->text, "an error without a sentence");
}

void fuzz_check_catalogue(const mdp_catalogue *catalogue) {
    int64_t all = 0;
    for (int64_t i = 0; i < catalogue->n_tensor; i++) {
        const mdp_tensor *t = &catalogue->tensors[i];
        int64_t n_byte = -1;
        fuzz_require(i == 0 || strcmp(catalogue->tensors[i - 1].name, t->name) < 0, "names do not ascend");
        fuzz_require(t->file >= 0 && t->file < catalogue->n_file, "a tensor in no file");
        fuzz_require(t->n_dim >= 0 && t->n_dim <= MDP_MAX_DIM, "too many dimensions");
        fuzz_require(mdp_dtype_bytes(t->type, t->n_dim, t->shape, &n_byte) && n_byte == t->n_byte, "wrong size");
        fuzz_require(t->offset >= 0 && t->n_byte >= 0 && t->offset <= catalogue->file_bytes[t->file] - t->n_byte,
                     "a tensor outside its file");
        all += n_byte;
    }
    fuzz_require(all == catalogue->tensor_byte, "bytes do not add up");
    for (int64_t i = 0; i < catalogue->n_side_file; i++) {
        const mdp_side_file *s = &catalogue->side_files[i];
        fuzz_require(s->name[0] && !strchr(s->name, '/') && strcmp(s->name, "..") != 0, "a side file with a path");
        fuzz_require(s->offset >= 0 && s->n_byte >= 0 && s->offset <= catalogue->file_bytes[s->file] - s->n_byte,
                     "a side file outside its file");
    }
}
