/* select.c - the value of a rank among others, without sorting them. */
#include "mdp/base.h"

static void swap(double *a, double *b) {
    double old = *a;
    *a = *b;
    *b = old;
}

void mdp_select_rank(double *value, int64_t n, int64_t at) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = value[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (value[i] < pivot) i++;
            while (value[j] > pivot) j--;
            if (i <= j) swap(&value[i++], &value[j--]);
        }
        if (at <= j)
            high = j;
        else if (at >= i)
            low = i;
        else
            return;
    }
}
