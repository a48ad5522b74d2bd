/* engine_harness.h - an engine of one layer for tests of its steps, from the fixtures that tests/fixtures/engine/make
 * writes: settings and tensors of a case become a model, and the engine computes from files as ever. */
#ifndef MDP_TESTS_UNIT_ENGINE_HARNESS_H
#define MDP_TESTS_UNIT_ENGINE_HARNESS_H

#include "engine/attention.h"
#include "engine/delta.h"
#include "engine/gated.h"
#include "engine/head.h"
#include "engine/mlp.h"
#include "engine/norm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define HARNESS_MOST_THREADS 3 /* results are the same bytes for 1 .. so many */

typedef struct harness {
    mdp_comm *comm;
    mdp_catalogue *catalogue; /* of the fixture: all cases */
    mdp_reader *reader;
    json_t *cases;
    /* the case at hand */
    const char *name;
    const json_t *settings;
    mdp_layer layer;
    mdp_model model;    /* of that layer alone */
    mdp_tokens *tokens; /* sequences of settings.lengths; ids are the fixture's or 0, 1, ... */
    mdp_partition *partition;
    mdp_gemm *gemm;
    mdp_engine *engine;
} harness;

/* Run a group of tests on the fixture of that name, each with the harness as its state; the exit code of main. */
int harness_run(const char *fixture, const struct CMUnitTest *tests, size_t n_test);

/* Take up a case: its model and its tokens. Leave it again. */
void harness_enter(harness *h, const char *name);
void harness_leave(harness *h);
/* An engine for n_thread threads, at the beginning of the only batch: embeddings in the residual stream. */
void harness_begin(harness *h, int n_thread, int n_stream);
void harness_end(harness *h);

/* A tensor of the case: as a matrix (tensor NULL: there is none), or its values, freed by the caller with mdp_free. */
mdp_matrix harness_matrix(const harness *h, const char *name);
float *harness_values(const harness *h, const char *name);
/* A gated MLP whose tensors begin with `prefix`. */
mdp_expert harness_mlp(const harness *h, const char *prefix);

void harness_ok(mdp_status status);
/* found [n] are the values of a tensor of the case, within what f32 allows. */
void harness_expect(const harness *h, const char *name, const float *found, int64_t n);
/* Keeps what it is given first, as *kept (NULL before; freed by the caller), and what it is given later has the same
 * bytes. */
void harness_expect_same(float **kept, const float *found, int64_t n);
/* A step of the layer turns the embeddings of a case into the residual stream "want", with the same bytes for any
 * number of threads. */
typedef mdp_status harness_step(mdp_engine *engine, const mdp_layer *layer);
void harness_expect_step(harness *h, harness_step *step, const char *name);

#endif
