/* layers.h - what report.json says of every layer. Private to src/report. */
#ifndef MDP_REPORT_LAYERS_H
#define MDP_REPORT_LAYERS_H

#include "mdp/report.h"

/* [{"layer", "experts", "top_k_before", "top_k_after", "kept", "zeroed", "dropped", "scores", "counts", "criteria"},
 * ...]; new. counts (rows routed per category) and criteria (scores by every one that they allow) with statistics only,
 * neurons (before, after) where the plan cuts. Local. */
mdp_status mdp_report_layers(const mdp_report *report, json_t **out);
/* Neurons of an expert of the model, of its first layer with experts. */
int64_t mdp_report_neurons(const mdp_report *report);
/* {"categories": [{"name", "tokens"}, ...], "criteria": [{"name", "help"}, ...]} of the statistics; new, JSON null
 * without. Local. */
json_t *mdp_report_observed(const mdp_report *report);

#endif
