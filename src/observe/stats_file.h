/* stats_file.h - what the writer and the reader of stats.h5 have in common. */
#ifndef MDP_OBSERVE_STATS_FILE_H
#define MDP_OBSERVE_STATS_FILE_H

#include "mdp/observe.h"

#define MDP_STATS_FORMAT "moe-dist-prune statistics"
/* Attribute `options`: how the inputs of the layers came about. */
#define MDP_STATS_ORIGINAL "{\"propagate\": \"original\"}"
#define MDP_STATS_PRUNED "{\"propagate\": \"pruned\"}"
#define MDP_STATS_VERSION "1.0"
/* Group in a layer's that holds the matrices of similarities. */
#define MDP_STATS_SIMILARITY "similarity"
/* Group in a layer's that holds what sets of experts lose, and attribute of the file that says how it was measured. */
#define MDP_STATS_SUBSETS "subsets"

/* mdp_stats_make_similarity for one layer. Local. */
mdp_status mdp_layer_make_similarity(mdp_stats *stats, int64_t layer_index, mdp_similarity_id id);

#endif
