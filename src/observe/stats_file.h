/* stats_file.h - what the writer and the reader of stats.h5 have in common. */
#ifndef MDP_OBSERVE_STATS_FILE_H
#define MDP_OBSERVE_STATS_FILE_H

#include "mdp/observe.h"

#define MDP_STATS_FORMAT "moe-dist-prune statistics"
/* Attribute `options`: how the inputs of the layers came about. */
#define MDP_STATS_ORIGINAL "{\"propagate\": \"original\"}"
#define MDP_STATS_PRUNED "{\"propagate\": \"pruned\"}"
#define MDP_STATS_VERSION "1.0"

/* The one vector statistic: sum over T_e of y. */
extern const mdp_statistic mdp_output_sum;

#endif
