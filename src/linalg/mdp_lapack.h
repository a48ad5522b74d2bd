/* mdp_lapack.h - the LAPACK routines that are called: not every distribution ships LAPACKE. Every argument is a
 * pointer; matrices are column-major. */
#ifndef MDP_LINALG_LAPACK_H
#define MDP_LINALG_LAPACK_H

void dpotrf_(const char *triangle, const int *n, double *a, const int *leading, int *info);
double dlansy_(const char *norm, const char *triangle, const int *n, const double *a, const int *leading, double *work);
void dpocon_(const char *triangle, const int *n, const double *a, const int *leading, const double *norm, double *rcond,
             double *work, int *iwork, int *info);
void dsyev_(const char *job, const char *triangle, const int *n, double *a, const int *leading, double *eigenvalues,
            double *work, const int *n_work, int *info);

#endif
