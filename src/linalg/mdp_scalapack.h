/* mdp_scalapack.h - the ScaLAPACK and BLACS calls that grid.c and spd.c use: distributions ship no header for them.
 * Every argument is a pointer to a Fortran integer (32 bits) or double; matrices are column-major. */
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

void pdpotrf_(const char *triangle, const int *n, double *a, const int *ia, const int *ja, const int *a_descriptor,
              int *info);
void pdpotrs_(const char *triangle, const int *n, const int *n_rhs, const double *a, const int *ia, const int *ja,
              const int *a_descriptor, double *b, const int *ib, const int *jb, const int *b_descriptor, int *info);

double pdlansy_(const char *norm, const char *triangle, const int *n, const double *a, const int *ia, const int *ja,
                const int *a_descriptor, double *work);
void pdpocon_(const char *triangle, const int *n, const double *a, const int *ia, const int *ja,
              const int *a_descriptor, const double *norm, double *rcond, double *work, const int *n_work, int *iwork,
              const int *n_iwork, int *info);

#endif
