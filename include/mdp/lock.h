/* lock.h - one owner of a folder at a time, among all processes on all hosts that see it.
 *
 * The owner holds the file `lock` in the folder: by a lock of the open file where the file system has locks, and by its
 * name and text otherwise. Serial: one rank of a job takes it for all. */
#ifndef MDP_LOCK_H
#define MDP_LOCK_H

#include "mdp/base.h"

#define MDP_LOCK_NAME "lock"

typedef struct mdp_lock mdp_lock;

/* How much is done to become an owner: a run that goes on with another waits a moment, in which that one is gone if it
 * was just killed; take over also where nobody can say whether the owner still lives. */
typedef struct mdp_claim {
    bool goes_on, take_over;
} mdp_claim;

/* Become the owner of `folder` (made, unless it is there), in which `output` is being made. MDP_CANNOT_CREATE: names
 * the owner, or what is in the way. */
mdp_status mdp_lock_take(const char *folder, const char *output, mdp_claim claim, mdp_lock **out);
/* Would that be refused? Takes and changes nothing; a folder that is not there has no owner. */
mdp_status mdp_lock_look(const char *folder, const char *output, bool take_over);
/* Is the folder still this process's? Leaves a sign of life. MDP_CANNOT_CREATE: it has been taken over. */
mdp_status mdp_lock_check(const mdp_lock *lock);
/* Eight characters that no other owner has had. */
const char *mdp_lock_token(const mdp_lock *lock);
/* Remove the lock, if it is still this process's. NULL is allowed. */
void mdp_lock_release(mdp_lock *lock);
/* Is the file at `path` a lock of ours, whoever holds or held it? */
bool mdp_lock_is_ours(const char *path);

#endif
