/* vectors.c - the table of vectors: what is summed for each expert of a layer beside single numbers. */
#include "mdp/observe.h"

const mdp_vector mdp_vectors[MDP_N_VECTOR] = {
    [MDP_OUTPUT_SUM] = {.name = "output_sum",
                        .meaning = "sum over the routed tokens of y, all categories",
                        .unit = "value of the hidden state",
                        .source = "REAP, arXiv 2510.13999"},
    [MDP_PAIR_COUNT] = {.name = "pair_count",
                        .meaning = "tokens that chose both experts; on the diagonal, that chose the one",
                        .unit = "tokens",
                        .source = "co-activation",
                        .span = MDP_SPAN_EXPERTS},
    [MDP_LOGIT_PRODUCT] = {.name = "logit_product",
                           .meaning = "sum over all tokens of z_i z_j, the router's logits before any bias",
                           .unit = "1",
                           .source = "M-SMoE, arXiv 2310.01334",
                           .span = MDP_SPAN_EXPERTS},
    [MDP_ROUTER_PRODUCT] = {.name = "router_product",
                            .meaning = "inner products of the router's rows",
                            .unit = "squared weight",
                            .source = "STUN, arXiv 2409.06211",
                            .span = MDP_SPAN_EXPERTS,
                            .late = true,
                            .join = MDP_JOIN_SAME},
    [MDP_WEIGHT_PRODUCT] = {.name = "weight_product",
                            .meaning = "inner products of the experts' gate, up and down matrices taken together",
                            .unit = "squared weight",
                            .source = "arXiv 2407.09590",
                            .span = MDP_SPAN_EXPERTS,
                            .late = true,
                            .join = MDP_JOIN_SAME},
    [MDP_PROBE_OUTPUT_SUM] = {.name = "probe_output_sum",
                              .meaning = "sum over the probe's tokens of y, whichever experts they choose",
                              .unit = "value of the hidden state",
                              .source = "HC-SMoE, arXiv 2410.08589",
                              .late = true},
    [MDP_PROBE_COSINE_SUM] = {.name = "probe_cosine_sum",
                              .meaning = "sum over the probe's tokens of cos(y_i, y_j), whichever experts they choose",
                              .unit = "1",
                              .source = "Sub-MoE",
                              .span = MDP_SPAN_EXPERTS,
                              .late = true},
    [MDP_CKA_LINEAR_PRODUCT] = {.name = "cka_linear_product",
                                .meaning = "inner products of the centred kernels Y Y^T over the probe's tokens, each "
                                           "divided by its norm",
                                .unit = "1",
                                .source = "arXiv 2407.09590",
                                .span = MDP_SPAN_EXPERTS,
                                .late = true,
                                .join = MDP_JOIN_NONE},
    [MDP_CKA_RBF_PRODUCT] = {.name = "cka_rbf_product",
                             .meaning = "inner products of the centred kernels exp(-dist^2 / (2 s^2)) of y over the "
                                        "probe's tokens, s the expert's median distance, each divided by its norm",
                             .unit = "1",
                             .source = "arXiv 2407.09590",
                             .span = MDP_SPAN_EXPERTS,
                             .late = true,
                             .join = MDP_JOIN_NONE},
    [MDP_GATED_INPUT_SQUARE] = {.name = "gated_input_square",
                                .meaning = "sum over the routed tokens of (g x)^2, x the expert's input",
                                .unit = "squared value of the hidden state",
                                .source = "MoE-Pruner, arXiv 2410.12013"},
    [MDP_GATED_HIDDEN_SQUARE] = {.name = "gated_hidden_square",
                                 .meaning = "sum over the routed tokens of (g h)^2, h what the down projection reads",
                                 .unit = "squared activation",
                                 .source = "MoE-Pruner, arXiv 2410.12013",
                                 .span = MDP_SPAN_NEURONS},
    [MDP_INPUT_SQUARE] = {.name = "input_square",
                          .meaning = "sum over the routed tokens of x^2, x the expert's input",
                          .unit = "squared value of the hidden state",
                          .source = "Wanda, arXiv 2306.11695"},
    [MDP_HIDDEN_SQUARE] = {.name = "hidden_square",
                           .meaning = "sum over the routed tokens of h^2, h what the down projection reads",
                           .unit = "squared activation",
                           .source = "Wanda, arXiv 2306.11695",
                           .span = MDP_SPAN_NEURONS},
};

int64_t mdp_vector_width(mdp_vector_id id, int32_t n_expert, int64_t d_model, int64_t d_ff) {
    switch (mdp_vectors[id].span) {
    case MDP_SPAN_EXPERTS:
        return n_expert;
    case MDP_SPAN_NEURONS:
        return d_ff;
    default:
        return d_model;
    }
}
