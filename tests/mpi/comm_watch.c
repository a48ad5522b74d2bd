/* When a command saves and when it stops: by --checkpoint-every, by --max-seconds with what a step and saving take, by
 * signal; the same on every rank, whatever their clocks say. */
#include "mpi_check.h"

#include <signal.h>
#include <string.h>

/* Seconds before now. */
static double before(double seconds) {
    return mdp_seconds() - seconds;
}

static mdp_verdict look_all(const mdp_comm *comm, mdp_watch *watch) {
    mdp_verdict verdict;
    CHECK_OK(mdp_watch_look_all(comm, watch, &verdict));
    int64_t same[2] = {(int64_t)verdict, -(int64_t)verdict};
    CHECK_OK(mdp_max_i64_all(comm, same, 2));
    CHECK(same[0] == -same[1]);
    return verdict;
}

static void saves_no_more_often_than_asked(const mdp_comm *comm) {
    mdp_watch watch = {.start = before(99.0), .every = 100.0};
    mdp_watch_begin_phase(&watch, 0);
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.start = before(101.0);
    CHECK(look_all(comm, &watch) == MDP_SAVE);
    mdp_watch_saved(&watch, before(0.1));
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.last_save = before(101.0);
    CHECK(look_all(comm, &watch) == MDP_SAVE);
    watch.every = 0.0; /* after every step */
    mdp_watch_saved(&watch, mdp_seconds());
    CHECK(look_all(comm, &watch) == MDP_SAVE);
}

/* 1,000 s are the bound, 900 are over. */
static mdp_watch watch_of_100_seconds(int64_t n_byte) {
    mdp_watch watch = {.start = before(900.0), .every = 1e9, .max_seconds = 1000.0};
    mdp_watch_begin_phase(&watch, n_byte);
    return watch;
}

static void keeps_the_time_that_a_step_and_saving_take(const mdp_comm *comm) {
    mdp_watch watch = watch_of_100_seconds(1);
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.last_look = before(80.0); /* a step of 80 s: another one has room */
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.last_look = before(95.0);
    CHECK(look_all(comm, &watch) == MDP_STOP);
    CHECK(strcmp(watch.reason, "--max-seconds 1000") == 0);
    watch = watch_of_100_seconds(1);
    mdp_watch_saved(&watch, before(40.0)); /* half a minute is left after another save as long */
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.last_look = before(40.0); /* but not after a step as well */
    CHECK(look_all(comm, &watch) == MDP_STOP);
    watch = watch_of_100_seconds(INT64_C(200) << 30); /* nothing was saved yet: what a slow file system takes */
    CHECK(look_all(comm, &watch) == MDP_STOP);
    watch.max_seconds = 0.0;
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
}

static void tries_what_saving_takes_where_nothing_tells(const mdp_comm *comm) {
    mdp_watch watch = watch_of_100_seconds(0);
    CHECK(look_all(comm, &watch) == MDP_SAVE);
    mdp_watch_saved(&watch, before(1.0));
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    mdp_watch_begin_phase(&watch, 0); /* of other things */
    CHECK(look_all(comm, &watch) == MDP_SAVE);
    watch.max_seconds = 0.0; /* without a bound there is no need */
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
}

/* Only rank 0's counts. */
static void clocks_that_differ_decide_nothing(const mdp_comm *comm) {
    mdp_watch watch = {.start = comm->rank == 0 ? before(1.0) : before(1e6), .every = 100.0, .max_seconds = 1000.0};
    mdp_watch_begin_phase(&watch, 1);
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    watch.start = comm->rank == 0 ? before(1e6) : before(1.0);
    CHECK(look_all(comm, &watch) == MDP_STOP);
}

static void worth_is_what_took_long_or_has_points(const mdp_comm *comm) {
    mdp_watch watch = {.start = before(100.0), .every = 60.0};
    bool worth;
    CHECK_OK(mdp_watch_worth_all(comm, &watch, before(1.0), &worth));
    CHECK(!worth);
    CHECK_OK(mdp_watch_worth_all(comm, &watch, before(11.0), &worth));
    CHECK(worth);
    watch.last_save = before(0.5);
    CHECK_OK(mdp_watch_worth_all(comm, &watch, before(1.0), &worth));
    CHECK(worth);
}

/* One rank is sent a signal; batch systems do not reach all at once. Last, since it is not taken back. */
static void a_signal_to_one_rank_stops_all(const mdp_comm *comm) {
    mdp_watch watch = {.start = mdp_seconds(), .every = 1e9};
    mdp_stop_defer();
    CHECK_OK(mdp_stop_begin());
    CHECK_OK(mdp_stop_listen());
    mdp_watch_begin_phase(&watch, 1);
    CHECK(look_all(comm, &watch) == MDP_GO_ON);
    if (comm->rank == comm->size - 1) CHECK(raise(SIGTERM) == 0);
    CHECK(look_all(comm, &watch) == MDP_STOP);
    CHECK(strcmp(watch.reason, "SIGTERM") == 0);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    saves_no_more_often_than_asked(comm);
    keeps_the_time_that_a_step_and_saving_take(comm);
    tries_what_saving_takes_where_nothing_tells(comm);
    clocks_that_differ_decide_nothing(comm);
    worth_is_what_took_long_or_has_points(comm);
    a_signal_to_one_rank_stops_all(comm);
    mdp_comm_destroy_all(comm);
    return check_end_all("comm_watch");
}
