/* recognise.c - what a file is that is not what was expected, by its first bytes.
 *
 * In: the beginning of a file. Out: words for a sentence, which say what to do where that is known. Only for errors: a
 * reader decides by its own rules whether a file is good. */
#include "mdp/base.h"

#include <string.h>
#include <strings.h>

#define HEAD_BYTE 64

typedef struct beginning {
    const char *bytes;
    int n_byte;
    const char *what;
} beginning;

#define BEGINS(text, what)                                                                                             \
    { (text), (int)sizeof(text) - 1, (what) }

/* Texts are compared without regard to case, behind white space. */
static const beginning texts[] = {
    BEGINS("version https://git-lfs",
           "a Git LFS pointer, which stands for a file that was not downloaded (git lfs pull)"),
    BEGINS("<!doctype html", "a web page, which a server gave instead of the file; download it again"),
    BEGINS("<html", "a web page, which a server gave instead of the file; download it again"),
    BEGINS("<?xml", "an XML text, perhaps a server's error; download the file again"),
    BEGINS("{", "a JSON text"),
    BEGINS("[", "a JSON text"),
};

static const beginning binaries[] = {
    BEGINS("\x89HDF\r\n\x1a\n", "an HDF5 file"),
    BEGINS("GGUF", "a GGUF file of llama.cpp, whose weights are converted; take the model that it was made from"),
    BEGINS("PK\x03\x04", "a zip archive such as torch.save writes; save the model as safetensors (transformers does)"),
    BEGINS("\x80\x02", "a pickle such as torch.save writes; save the model as safetensors (transformers does)"),
    BEGINS("\x93NUMPY", "a NumPy array"),
    BEGINS("\x1f\x8b", "a file packed by gzip; unpack it"),
    BEGINS("\x28\xb5\x2f\xfd", "a file packed by zstd; unpack it"),
};

/* Eight bytes of header length, then JSON. */
static bool is_safetensors(const char *head, int64_t n_byte) {
    return n_byte > 9 && memcmp(head + 5, "\0\0\0{\"", 5) == 0;
}

const char *mdp_recognise(const char *head, int64_t n_byte) {
    if (n_byte == 0) return "an empty file";
    for (size_t i = 0; i < sizeof binaries / sizeof *binaries; i++) {
        const beginning *b = &binaries[i];
        if (n_byte >= b->n_byte && memcmp(head, b->bytes, (size_t)b->n_byte) == 0) return b->what;
    }
    if (is_safetensors(head, n_byte)) return "a safetensors file";
    while (n_byte > 0 && *head != '\0' && strchr(" \t\r\n", *head)) head++, n_byte--;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const beginning *b = &texts[i];
        if (n_byte >= b->n_byte && strncasecmp(head, b->bytes, (size_t)b->n_byte) == 0) return b->what;
    }
    return NULL;
}

const char *mdp_recognise_file(const char *path) {
    char head[HEAD_BYTE];
    int fd;
    int64_t n_byte = 0;
    if (mdp_file_open_read(path, &fd).code != MDP_OK) return NULL;
    mdp_status status = mdp_file_size(path, fd, &n_byte);
    if (n_byte > HEAD_BYTE) n_byte = HEAD_BYTE;
    if (status.code == MDP_OK) status = mdp_file_pread(path, fd, head, n_byte, 0);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code == MDP_OK && closed.code == MDP_OK ? mdp_recognise(head, n_byte) : NULL;
}
