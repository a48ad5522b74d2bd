/* mdp_scalapack.h - the ScaLAPACK and BLACS calls that scalapack.c uses: distributions ship no header for them. Every
 * argument is a pointer to a Fortran integer (32 bits) or double; matrices are column-major. */
#ifndef MDP_LINALG_SCALAPACK_H
#define MDP_LINALG_SCALAPACK_H

#include <mpi.h>

/* ---- BLACS, C interface: process grids ---- */
int Csys2blacs_handle(MPI_Comm comm);
void Cfree_blacs_system_handle(int handle);
void Cblacs_gridinit(int *context, const char *order, int n_row, int n_col);
void Cblacs_gridinfo(int context, int *n_row, int *n_col, int *row, int *col);
void Cblacs_gridexit(int context);

/* ---- tools ---- */
int numroc_(const int *n, const int *block, const int *coordinate, const int *source, const int *n_process);
void descinit_(int *descriptor, const int *m, const int *n, const int *row_block, const int *col_block,
               const int *row_source, const int *col_source, const int *context, const int *leading, int *info);

/* Copy an m x n piece between two distributions; `context` holds the ranks of both, all of which call. */
void Cpdgemr2d(int m, int n, double *a, int ia, int ja, int *a_descriptor, double *b, int ib, int jb, int *b_descriptor,
               int context);
/* C = beta C + alpha A^T, C [m, n]. */
void pdtran_(const int *m, const int *n, const double *alpha, const double *a, const int *ia, const int *ja,
             const int *a_descriptor, const double *beta, double *c, const int *ic, const int *jc,
             const int *c_descriptor);
void pdpotrf_(const char *triangle, const int *n, double *a, const int *ia, const int *ja, const int *a_descriptor,
              int *info);
void pdpotrs_(const char *triangle, const int *n, const int *n_rhs, const double *a, const int *ia, const int *ja,
              const int *a_descriptor, double *b, const int *ib, const int *jb, const int *b_descriptor, int *info);

#endif
