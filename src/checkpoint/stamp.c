/* stamp.c - which file, in which state: size, time of the last change, device and inode. */
#include "checkpoint/stamp.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

mdp_status mdp_stamp_take(const char *path, mdp_stamp *out) {
    struct stat info;
    MDP_TRY(mdp_fault(MDP_IO, "stat"));
    if (stat(path, &info) != 0)
        return MDP_ERROR(MDP_IO, "%s: cannot find the time of the last change: %s.", path, strerror(errno));
    *out = (mdp_stamp){.n_byte = info.st_size,
                       .changed = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec,
                       .device = (uint64_t)info.st_dev,
                       .inode = (uint64_t)info.st_ino};
    return mdp_ok();
}

mdp_status mdp_stamp_differs(const char *path) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: was changed while it was read, so that results would be of two models; run again with "
                     "--overwrite when it is complete.",
                     path);
}

mdp_status mdp_catalogue_check(const mdp_catalogue *catalogue) {
    for (int32_t i = 0; catalogue->stamps && i < catalogue->n_file; i++) {
        const mdp_stamp *then = &catalogue->stamps[i];
        mdp_stamp now;
        if (mdp_catalogue_is_side_file(catalogue, i)) continue;
        MDP_TRY(mdp_stamp_take(catalogue->files[i], &now));
        if (now.n_byte == then->n_byte && now.changed == then->changed && now.inode == then->inode) continue;
        return mdp_stamp_differs(catalogue->files[i]);
    }
    return mdp_ok();
}
