/* recast.h - a stored tensor in another type, or with masked entries set to 0: what a writer makes where it would else
 * copy bytes.
 *
 * A result is made in bands, one after the other, each from values that are read once: whole rows, rows of FP8 blocks,
 * or columns that become rows. Which band a byte is of depends on shapes alone, so all of it is known beforehand. */
#ifndef MDP_RECAST_H
#define MDP_RECAST_H

#include "mdp/checkpoint.h"

#define MDP_FP8_BLOCK 128 /* rows and columns of a block of FP8 codes that share a scale */

/* A tensor, or the slice of it that is an expert's, with masked entries set to 0, in the type that it has. */
typedef struct mdp_masked {
    int n;                         /* matrices with masks in the slice; 0: this is not wanted */
    const mdp_matrix *matrices[2]; /* [n] of one tensor; borrowed */
    int64_t first_byte, n_byte;    /* the slice in the tensor */
} mdp_masked;

typedef struct mdp_recast {
    mdp_masked masked; /* when wanted, nothing else counts */
    mdp_matrix from;   /* all values of the source, in the order in which it stores them */
    int64_t n_run;     /* they are so many matrices, one after the other, of as many rows each */
    bool transposed;   /* rows of each become its columns; not to FP8 */
    mdp_dtype type; /* F32, BF16, F16: each value rounded once; F8_E4M3: codes, a block's values divided by its scale */
    bool scales;    /* the result is the scales instead, f32: largest absolute value of the block / 448, 1 for zeros */
} mdp_recast;

int64_t mdp_recast_bytes(const mdp_recast *recast);      /* of the result */
int64_t mdp_recast_read_bytes(const mdp_recast *recast); /* from files, for all of it */
int64_t mdp_recast_memory(const mdp_recast *recast);     /* bytes that a recaster holds for it */

/* The band in memory. All zeros: none; mdp_recaster_clear when it is done. */
typedef struct mdp_recaster {
    const mdp_recast *recast; /* that the band is of */
    int64_t band, n_made;     /* its number, and its bytes */
    float *values;
    void *scratch;
    unsigned char *made;
    int64_t room_values, room_scratch, room_made; /* bytes */
} mdp_recaster;
void mdp_recaster_clear(mdp_recaster *recaster);
/* Room of so many bytes in its buffers. */
mdp_status mdp_recaster_make_rooms(mdp_recaster *recaster, int64_t values, int64_t scratch, int64_t made);
/* n_byte bytes of the result from `offset` on; *n_read grows by what was read from files. Local; any one thread.
 * MDP_BAD_INPUT: a finite value is too large for the type, or one that is to become FP8 is not finite. */
mdp_status mdp_recaster_read(mdp_recaster *recaster, mdp_reader *reader, const mdp_recast *recast, int64_t offset,
                             int64_t n_byte, void *out, int64_t *n_read);

#endif
