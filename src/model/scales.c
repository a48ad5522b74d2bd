/* scales.c - the scales that belong to a stored weight, by name and shape: `X_scale_inv` or `X_scale` beside `X`, one
 * number for each block, [ceil(rows / block), ceil(columns / block)] after the dimensions before; or, where config.json
 * gives no blocks, for each row [rows, 1], or one. Despite the first name they multiply. */
#include "model/scales.h"

#include "model/names.h"

#include <inttypes.h>
#include <string.h>

static bool is_scale_type(mdp_dtype type) {
    return mdp_dtype_widens(type) || type == MDP_F8_E8M0 || type == MDP_U8;
}

/* "3, 2" */
static void write_shape(int n_dim, const int64_t *shape, char out[200]) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n_dim && used < 200; i++) {
        int n = snprintf(out + used, 200 - used, "%s%" PRId64, i == 0 ? "" : ", ", shape[i]);
        used += n > 0 ? (size_t)n : 0;
    }
}

static mdp_status check_shape(const mdp_catalogue *catalogue, const mdp_tensor *tensor, const mdp_scaling *scaling) {
    const mdp_tensor *scales = scaling->tensor;
    int64_t shape[MDP_MAX_DIM] = {0};
    int last = tensor->n_dim - 1;
    for (int i = 0; i < last - 1; i++) shape[i] = tensor->shape[i];
    shape[last - 1] = (scaling->n_row + scaling->block_row - 1) / scaling->block_row;
    shape[last] = (scaling->n_col + scaling->block_col - 1) / scaling->block_col;
    bool same = scales->n_dim == tensor->n_dim;
    for (int i = 0; same && i <= last; i++) same = scales->shape[i] == shape[i];
    if (same) return mdp_ok();
    char found[200], expected[200];
    write_shape(scales->n_dim, scales->shape, found);
    write_shape(tensor->n_dim, shape, expected);
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the scales '%s' have shape [%s]; expected [%s], one for each block of %" PRId64 " x %" PRId64
                     " values (quantization_config, weight_block_size).",
                     catalogue->path, scales->name, found, expected, scaling->block_row, scaling->block_col);
}

/* The tensor `X_scale_inv` or `X_scale` beside X. */
static mdp_status find_tensor(const mdp_catalogue *catalogue, const mdp_tensor *tensor, const mdp_tensor **out) {
    static const char *const ENDINGS[] = {"_scale", "_scale_inv"};
    char name[MDP_NAME_BYTES + 16];
    *out = NULL;
    for (int i = 0; i < 2 && *out == NULL; i++) {
        (void)snprintf(name, sizeof name, "%s%s", tensor->name, ENDINGS[i]);
        *out = mdp_catalogue_find(catalogue, name);
    }
    if (*out == NULL) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is stored as %s, but its scales '%s' are missing.", catalogue->path,
                         tensor->name, mdp_dtype_name(tensor->type), name);
    }
    if (is_scale_type((*out)->type)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the scales '%s' are stored as %s; supported are F32, F16, BF16 and F8_E8M0.",
                     catalogue->path, name, mdp_dtype_name((*out)->type));
}

/* Are there as many scales as rows, or one? Then those are the blocks. */
static bool are_wide(const mdp_tensor *tensor, mdp_scaling *scaling) {
    const mdp_tensor *scales = scaling->tensor;
    bool same_dims = scales->n_dim == tensor->n_dim; /* a run of matrices has a run of scales */
    if (!same_dims && (tensor->n_dim > 2 || scales->n_dim > 1)) return false;
    if (same_dims && scales->shape[scales->n_dim - 1] != 1) return false;
    int64_t n = same_dims ? scales->shape[scales->n_dim - 2] : scales->n_dim == 0 ? 1 : scales->shape[0];
    for (int i = 0; same_dims && i < scales->n_dim - 2; i++)
        if (scales->shape[i] != tensor->shape[i]) return false;
    if (n != 1 && n != scaling->n_row) return false;
    scaling->block_row = n == 1 ? scaling->n_row : 1;
    scaling->block_col = scaling->n_col;
    return true;
}

mdp_status mdp_scales_find(const mdp_catalogue *catalogue, const mdp_quantisation *quantisation,
                           const mdp_tensor *tensor, mdp_scaling *out) {
    const mdp_tensor *scales;
    MDP_TRY(find_tensor(catalogue, tensor, &scales));
    *out = (mdp_scaling){.tensor = scales,
                         .code = tensor->type,
                         .n_row = tensor->shape[tensor->n_dim - 2],
                         .n_col = tensor->shape[tensor->n_dim - 1],
                         .block_row = quantisation->block_row,
                         .block_col = quantisation->block_col};
    if (!quantisation->in_blocks && are_wide(tensor, out)) return mdp_ok();
    return check_shape(catalogue, tensor, out);
}

enum { MXFP4_BLOCK = 32, MXFP4_BYTE = MXFP4_BLOCK / 2 };

static mdp_status check_packed(const mdp_catalogue *catalogue, const mdp_tensor *tensor, int n_dim,
                               const int64_t *shape) {
    bool same = tensor->n_dim == n_dim && (tensor->type == MDP_U8 || (n_dim == 3 && tensor->type == MDP_F8_E8M0));
    for (int i = 0; same && i < n_dim; i++) same = tensor->shape[i] == shape[i];
    if (same) return mdp_ok();
    char found[200], expected[200];
    write_shape(tensor->n_dim, tensor->shape, found);
    write_shape(n_dim, shape, expected);
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: '%s' is stored as %s [%s]; expected for MXFP4 weights U8 [%s], from the sizes in config.json.",
        catalogue->path, tensor->name, mdp_dtype_name(tensor->type), found, expected);
}

mdp_status mdp_mxfp4_bind(const mdp_catalogue *catalogue, const mdp_tensor *blocks, const mdp_tensor *scales,
                          const int64_t shape[3], mdp_matrix *out) {
    const int64_t stored[4] = {shape[0], shape[1], shape[2] / MXFP4_BLOCK, MXFP4_BYTE};
    if (shape[2] % MXFP4_BLOCK != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s': rows of %" PRId64 " values cannot be MXFP4, which has blocks of %d.",
                         catalogue->path, blocks->name, shape[2], MXFP4_BLOCK);
    }
    MDP_TRY(check_packed(catalogue, blocks, 4, stored));
    MDP_TRY(check_packed(catalogue, scales, 3, stored));
    const mdp_scaling scaling = {.tensor = scales,
                                 .code = MDP_F4,
                                 .n_row = shape[1],
                                 .n_col = shape[2],
                                 .block_row = 1,
                                 .block_col = MXFP4_BLOCK};
    *out = mdp_matrix_scaled(blocks, &scaling);
    return mdp_ok();
}
