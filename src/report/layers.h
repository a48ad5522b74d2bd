/* layers.h - what report.json says of every layer. Private to src/report. */
#ifndef MDP_REPORT_LAYERS_H
#define MDP_REPORT_LAYERS_H

#include "mdp/report.h"

/* [{"layer", "experts", "top_k_before", "top_k_after", "kept", "zeroed", "merged", "merges", "dropped", "scores",
 * "counts", "criteria", "similarity"}, ...]; new. counts (rows routed per category) and criteria (scores by every one
 * that they allow) with statistics only, neurons (before, after) where the plan cuts. Local. */
mdp_status mdp_report_layers(const mdp_report *report, json_t **out);
/* {"order", "groups", "cells", "least_alike", "most_alike", "levels"} of a layer whose experts were grouped by a
 * similarity that the statistics hold: experts in the order of a dendrogram, groups together; sizes of the groups in
 * that order; the lower triangle of cells, a letter each (A-Z, a-z, 0-9, +, -), from the least alike to the most. New;
 * NULL: there is none. Local. */
mdp_status mdp_report_alike(const mdp_report *report, int64_t i, json_t **out);
/* Neurons of an expert of the model, of its first layer with experts. */
int64_t mdp_report_neurons(const mdp_report *report);
/* {"categories": [{"name", "tokens"}, ...], "criteria": [{"name", "help"}, ...]} of the statistics; new, JSON null
 * without. Local. */
json_t *mdp_report_observed(const mdp_report *report);

#endif
