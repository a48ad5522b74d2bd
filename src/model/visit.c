/* visit.c - the matrices of a layer, one after the other, for whoever does the same with all of them. */
#include "mdp/model.h"

#define OF(member) offsetof(mdp_layer, member)

/* Of every layer; those that a layer has not are absent. In the order of a pass. */
static const size_t BEFORE_EXPERTS[] = {
    OF(norm1.weight),
    OF(norm1.bias),
    OF(attention.q_a),
    OF(attention.q_a_bias),
    OF(attention.q_a_norm),
    OF(attention.kv_a),
    OF(attention.kv_a_bias),
    OF(attention.kv_a_norm),
    OF(attention.q),
    OF(attention.q_bias),
    OF(attention.q_norm),
    OF(attention.k),
    OF(attention.k_bias),
    OF(attention.k_norm),
    OF(attention.v),
    OF(attention.v_bias),
    OF(attention.kv_b),
    OF(attention.sinks),
    OF(attention.delta.in),
    OF(attention.delta.z),
    OF(attention.delta.b),
    OF(attention.delta.a),
    OF(attention.delta.kernel),
    OF(attention.delta.rate),
    OF(attention.delta.shift),
    OF(attention.delta.norm),
    OF(attention.o),
    OF(attention.o_bias),
    OF(norm2.weight),
    OF(norm2.bias),
    OF(moe.router),
    OF(moe.router_bias),
    OF(moe.choice_bias),
};

static void visit(mdp_matrix_visit *see, void *context, const mdp_matrix *matrix, mdp_expert_t expert) {
    if (matrix->tensor) see(context, matrix, expert);
}

void mdp_expert_visit(const mdp_expert *mlp, mdp_expert_t expert, mdp_matrix_visit *see, void *context) {
    const mdp_matrix *all[] = {&mlp->gate, &mlp->gate_bias, &mlp->up, &mlp->up_bias, &mlp->down, &mlp->down_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) visit(see, context, all[i], expert);
}

void mdp_layer_visit(const mdp_layer *layer, mdp_matrix_visit *see, void *context) {
    for (size_t i = 0; i < sizeof BEFORE_EXPERTS / sizeof BEFORE_EXPERTS[0]; i++)
        visit(see, context, (const mdp_matrix *)(const void *)((const char *)layer + BEFORE_EXPERTS[i]), -1);
    for (mdp_expert_t e = 0; layer->is_moe && e < layer->moe.n_expert; e++)
        mdp_expert_visit(&layer->moe.experts[e], e, see, context);
    mdp_expert_visit(layer->is_moe ? &layer->moe.shared : &layer->dense, -1, see, context);
    visit(see, context, &layer->moe.shared_gate, -1);
}

/* ---- codes that are taken as bf16 -------------------------------------------------------------------------------- */

static void round_codes(mdp_matrix *matrix) {
    matrix->scaling.rounded = matrix->scaling.tensor != NULL;
}

static void round_expert(mdp_expert *mlp) {
    round_codes(&mlp->gate);
    round_codes(&mlp->up);
    round_codes(&mlp->down);
}

void mdp_model_round_codes(mdp_model *model) {
    round_codes(&model->embedding);
    round_codes(&model->head);
    for (int64_t l = 0; l < model->n_layer; l++) {
        mdp_layer *layer = &model->layers[l];
        for (size_t i = 0; i < sizeof BEFORE_EXPERTS / sizeof BEFORE_EXPERTS[0]; i++)
            round_codes((mdp_matrix *)(void *)((char *)layer + BEFORE_EXPERTS[i]));
        for (mdp_expert_t e = 0; layer->is_moe && e < layer->moe.n_expert; e++) round_expert(&layer->moe.experts[e]);
        round_expert(layer->is_moe ? &layer->moe.shared : &layer->dense);
        round_codes(&layer->moe.shared_gate);
    }
}
