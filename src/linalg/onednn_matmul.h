/* onednn_matmul.h - y (+)= x w^T in bf16, made ready once and run often, by oneDNN 2 or 3, whose C interfaces differ.
 * Private to src/linalg and tools/peak.c. Whoever includes it has the library. */
#ifndef MDP_LINALG_ONEDNN_MATMUL_H
#define MDP_LINALG_ONEDNN_MATMUL_H

#include <oneapi/dnnl/dnnl.h>
#include <stdbool.h>
#include <string.h>

/* x [n, k] and w [m, k] in bf16, y [n, m] in f32; leading dimensions in elements. The data are named at each run. */
typedef struct mdp_matmul {
    int n, m, k, ldx, ldw, ldy;
    bool add;
    dnnl_primitive_t run;
    dnnl_memory_t x, w, y;
} mdp_matmul;

/* A matrix as the library describes it: its own object in version 3, which must be destroyed; before, a plain value. */
#if DNNL_VERSION_MAJOR >= 3

typedef dnnl_memory_desc_t mdp_matmul_matrix;

static inline dnnl_status_t mdp_matmul_describe(mdp_matmul_matrix *out, const dnnl_dims_t shape, dnnl_data_type_t type,
                                                const dnnl_dims_t strides) {
    return dnnl_memory_desc_create_with_strides(out, 2, shape, type, strides);
}

static inline void mdp_matmul_forget(mdp_matmul_matrix *matrix) {
    if (*matrix) dnnl_memory_desc_destroy(*matrix);
}

static inline dnnl_status_t mdp_matmul_choose(dnnl_engine_t engine, const mdp_matmul_matrix xwy[3],
                                              dnnl_primitive_attr_t attributes, dnnl_primitive_desc_t *out) {
    return dnnl_matmul_primitive_desc_create(out, engine, xwy[0], xwy[1], NULL, xwy[2], attributes);
}

static inline dnnl_status_t mdp_matmul_append_sum(dnnl_post_ops_t after) {
    return dnnl_post_ops_append_sum(after, 1.0F, 0, dnnl_data_type_undef);
}

static inline dnnl_status_t mdp_matmul_place(dnnl_memory_t *out, mdp_matmul_matrix *matrix, dnnl_engine_t engine) {
    return dnnl_memory_create(out, *matrix, engine, DNNL_MEMORY_NONE);
}

#else

typedef dnnl_memory_desc_t mdp_matmul_matrix;

static inline dnnl_status_t mdp_matmul_describe(mdp_matmul_matrix *out, const dnnl_dims_t shape, dnnl_data_type_t type,
                                                const dnnl_dims_t strides) {
    return dnnl_memory_desc_init_by_strides(out, 2, shape, type, strides);
}

static inline void mdp_matmul_forget(mdp_matmul_matrix *matrix) {
    (void)matrix;
}

static inline dnnl_status_t mdp_matmul_choose(dnnl_engine_t engine, const mdp_matmul_matrix xwy[3],
                                              dnnl_primitive_attr_t attributes, dnnl_primitive_desc_t *out) {
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_matmul_desc_init(&matmul, &xwy[0], &xwy[1], NULL, &xwy[2]);
    return status == dnnl_success ? dnnl_primitive_desc_create(out, &matmul, attributes, engine, NULL) : status;
}

static inline dnnl_status_t mdp_matmul_append_sum(dnnl_post_ops_t after) {
    return dnnl_post_ops_append_sum(after, 1.0F);
}

static inline dnnl_status_t mdp_matmul_place(dnnl_memory_t *out, mdp_matmul_matrix *matrix, dnnl_engine_t engine) {
    return dnnl_memory_create(out, matrix, engine, DNNL_MEMORY_NONE);
}

#endif

static inline void mdp_matmul_discard(mdp_matmul *product) {
    if (product->run) dnnl_primitive_destroy(product->run);
    if (product->x) dnnl_memory_destroy(product->x);
    if (product->w) dnnl_memory_destroy(product->w);
    if (product->y) dnnl_memory_destroy(product->y);
    memset(product, 0, sizeof *product);
}

static inline dnnl_status_t mdp_matmul_make(dnnl_engine_t engine, bool add, const mdp_matmul_matrix xwy[3],
                                            dnnl_primitive_t *out) {
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t after = NULL;
    dnnl_primitive_desc_t chosen = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(&attributes);
    if (status == dnnl_success) status = dnnl_post_ops_create(&after);
    if (status == dnnl_success && add) status = mdp_matmul_append_sum(after);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(attributes, after);
    if (status == dnnl_success) status = mdp_matmul_choose(engine, xwy, attributes, &chosen);
    if (status == dnnl_success) status = dnnl_primitive_create(out, chosen);
    if (chosen) dnnl_primitive_desc_destroy(chosen);
    if (after) dnnl_post_ops_destroy(after);
    if (attributes) dnnl_primitive_attr_destroy(attributes);
    return status;
}

/* Make a product of the shape that `product` has ready; what was made is discarded by the caller, on error too. */
static inline dnnl_status_t mdp_matmul_prepare(dnnl_engine_t engine, mdp_matmul *product) {
    const dnnl_dims_t x_shape = {product->n, product->k}, x_strides = {product->ldx, 1};
    const dnnl_dims_t w_shape = {product->k, product->m}, w_strides = {1, product->ldw};
    const dnnl_dims_t y_shape = {product->n, product->m}, y_strides = {product->ldy, 1};
    mdp_matmul_matrix xwy[3];
    memset(xwy, 0, sizeof xwy);
    dnnl_status_t status = mdp_matmul_describe(&xwy[0], x_shape, dnnl_bf16, x_strides);
    if (status == dnnl_success) status = mdp_matmul_describe(&xwy[1], w_shape, dnnl_bf16, w_strides);
    if (status == dnnl_success) status = mdp_matmul_describe(&xwy[2], y_shape, dnnl_f32, y_strides);
    if (status == dnnl_success) status = mdp_matmul_make(engine, product->add, xwy, &product->run);
    if (status == dnnl_success) status = mdp_matmul_place(&product->x, &xwy[0], engine);
    if (status == dnnl_success) status = mdp_matmul_place(&product->w, &xwy[1], engine);
    if (status == dnnl_success) status = mdp_matmul_place(&product->y, &xwy[2], engine);
    for (int i = 0; i < 3; i++) mdp_matmul_forget(&xwy[i]);
    return status;
}

/* The data are read and written only. */
static inline dnnl_status_t mdp_matmul_run(const mdp_matmul *product, dnnl_stream_t stream, const void *x,
                                           const void *w, float *y) {
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, product->x}, {DNNL_ARG_WEIGHTS, product->w}, {DNNL_ARG_DST, product->y}};
    dnnl_status_t status = dnnl_memory_set_data_handle(product->x, (void *)(uintptr_t)x);
    if (status == dnnl_success) status = dnnl_memory_set_data_handle(product->w, (void *)(uintptr_t)w);
    if (status == dnnl_success) status = dnnl_memory_set_data_handle(product->y, y);
    if (status == dnnl_success) status = dnnl_primitive_execute(product->run, stream, 3, arguments);
    return status == dnnl_success ? dnnl_stream_wait(stream) : status;
}

#endif
