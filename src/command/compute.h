/* compute.h - --gemm and --compute: which library multiplies, and in which numbers. */
#ifndef MDP_COMPUTE_H
#define MDP_COMPUTE_H

#include "command/command.h"

/* Set session->gemm and session->compute; where the options say auto, to what a run that goes on began with, else by
 * measurement on rank 0. The model, where there is one, is open. in_folder: resume points are in the folder --out. All
 * ranks multiply by the same kernel, else results would depend on the layout. Collective. Errors: MDP_USAGE when the
 * program, the library or the processor cannot; MDP_INTERNAL naming ranks that differ. */
mdp_status mdp_session_choose_compute_all(mdp_session *session, bool in_folder);

#endif
