/* config.c - fuzz target: the bytes are config.json; after a 0 byte, changes of the checkpoint's tensors.
 *
 * The tensors are those of the golden checkpoint whose folder name the text's model_type begins, else the first's. */
#include "fuzz.h"

#include "mdp/model.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GOLDEN = 64 };

static mdp_catalogue *golden[MAX_GOLDEN];
static int n_golden = 0;

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static void open_golden(void) {
    struct dirent **names = NULL;
    int n = scandir(MDP_TEST_FIXTURES "/golden", &names, is_visible, alphasort);
    for (int i = 0; i < n && n_golden < MAX_GOLDEN; i++) {
        char path[512];
        (void)snprintf(path, sizeof path, MDP_TEST_FIXTURES "/golden/%s", names[i]->d_name);
        if (mdp_catalogue_open_all(fuzz_comm(), path, &golden[n_golden]).code == MDP_OK) n_golden++;
    }
    fuzz_require(n_golden > 0, "no golden checkpoints");
}

static const mdp_catalogue *choose(const char *text, size_t n_byte) {
    for (int g = n_golden - 1; g > 0; g--) {
        const char *name = strrchr(golden[g]->path, '/') + 1;
        char word[80];
        (void)snprintf(word, sizeof word, "\"%s\"", name);
        if (memmem(text, n_byte, word, strlen(word))) return golden[g];
    }
    return golden[0];
}

/* Two bytes which tensor, one what, one how much: dimensions, shape, type, or another name. */
static void change(mdp_catalogue *catalogue, const uint8_t *at, const uint8_t *end) {
    for (; end - at >= 4; at += 4) {
        mdp_tensor *t = &catalogue->tensors[(at[0] + 256 * at[1]) % catalogue->n_tensor];
        switch (at[2] % 4) {
        case 0:
            t->n_dim = at[3] % (MDP_MAX_DIM + 1);
            break;
        case 1:
            t->shape[at[2] / 4 % MDP_MAX_DIM] = at[3] == 255 ? INT64_MAX : at[3];
            break;
        case 2:
            t->type = (mdp_dtype)(at[3] % MDP_N_DTYPE);
            break;
        default: /* gone: the ones after it move up */
            if (catalogue->n_tensor == 1) break;
            memmove(t, t + 1, (size_t)(catalogue->tensors + catalogue->n_tensor - t - 1) * sizeof *t);
            catalogue->n_tensor--;
            break;
        }
    }
}

static void patch(const mdp_model *model) {
    char *text = NULL;
    int64_t n_byte = 0;
    json_t *json = NULL;
    mdp_status status = mdp_model_patch_config(
        model, &(mdp_config_change){.n_expert = 12345, .top_k = 3, .without_extra = true}, &text, &n_byte);
    fuzz_require(status.code == MDP_OK, status.text);
    status = mdp_json_parse(text, n_byte, "patched", &json);
    fuzz_require(status.code == MDP_OK, "config.json with other numbers is no JSON any more");
    json_decref(json);
    mdp_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    if (n_golden == 0) open_golden();
    const uint8_t *mark = memchr(data, 0, n_byte), *end = data + n_byte;
    size_t n_text = mark ? (size_t)(mark - data) : n_byte;
    const mdp_catalogue *from = choose((const char *)data, n_text);
    mdp_catalogue catalogue = *from;
    size_t n_tensor_byte = (size_t)from->n_tensor * sizeof *from->tensors;
    catalogue.config_text = calloc(1, n_text + 1);
    catalogue.config_byte = (int64_t)n_text;
    catalogue.tensors = malloc(n_tensor_byte);
    fuzz_require(catalogue.config_text && catalogue.tensors, "out of memory");
    if (n_text > 0) memcpy(catalogue.config_text, data, n_text);
    memcpy(catalogue.tensors, from->tensors, n_tensor_byte);
    if (mark) change(&catalogue, mark + 1, end);
    mdp_model *model = NULL;
    fuzz_begin();
    mdp_status status = mdp_model_bind(&catalogue, &model);
    fuzz_end(&status);
    if (status.code == MDP_OK) patch(model);
    mdp_model_destroy(model);
    free(catalogue.config_text);
    free(catalogue.tensors);
    return 0;
}
