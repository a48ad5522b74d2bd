/* told.c - what the profile is told of reading and observing. */
#include "engine/engine.h"

#include <omp.h>

mdp_reading mdp_engine_begin_reading(mdp_engine *engine) {
    return (mdp_reading){.before = mdp_profile_switch(engine->profile, MDP_PHASE_READ),
                         .n_byte = mdp_reader_bytes(engine->reader)};
}

void mdp_engine_end_reading(mdp_engine *engine, const mdp_reading *reading) {
    mdp_profile_read(engine->profile, mdp_reader_bytes(engine->reader) - reading->n_byte);
    mdp_profile_switch(engine->profile, reading->before);
}

mdp_status mdp_engine_load(mdp_engine *engine, const mdp_matrix *matrix, float **out) {
    mdp_reading reading = mdp_engine_begin_reading(engine);
    mdp_status status = mdp_matrix_load(engine->reader, matrix, out);
    mdp_engine_end_reading(engine, &reading);
    return status;
}

mdp_phase mdp_engine_begin_observing(const mdp_engine *engine) {
    return omp_get_thread_num() == 0 ? mdp_profile_switch(engine->profile, MDP_PHASE_OBSERVERS) : MDP_PHASE_OTHER;
}

void mdp_engine_end_observing(const mdp_engine *engine, mdp_phase before) {
    if (omp_get_thread_num() == 0) mdp_profile_switch(engine->profile, before);
}

mdp_status(mdp_engine_agree_all)(const mdp_engine *engine, mdp_status status) {
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    status = mdp_agree_all(engine->comm, status);
    mdp_profile_switch(engine->profile, before);
    return status;
}
