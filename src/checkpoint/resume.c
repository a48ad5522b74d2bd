/* resume.c - what is saved for --resume: see resume.h. Rank 0 touches the disk; all ranks agree. */
#include "mdp/resume.h"

#include <string.h>

void mdp_resume_destroy(mdp_resume *resume) {
    if (!resume) return;
    mdp_free(resume->identity);
    mdp_free(resume);
}

mdp_status mdp_resume_path(const mdp_resume *resume, const char *name, char **out) {
    return mdp_path_join(out, resume->workshop->folder, name);
}

mdp_status mdp_resume_next_point(const mdp_resume *resume, char **out) {
    char name[32];
    (void)snprintf(name, sizeof name, "pass-%d.h5", resume->n_pass);
    return mdp_resume_path(resume, name, out);
}

static mdp_status prepare(const mdp_resume *resume) {
    char *path = NULL;
    MDP_TRY(mdp_workshop_check_owner(resume->workshop));
    if (resume->exists) return mdp_ok();
    MDP_TRY(mdp_resume_path(resume, "identity.json", &path));
    mdp_status status = mdp_file_write_all(path, resume->identity, (int64_t)strlen(resume->identity));
    mdp_free(path);
    return status;
}

mdp_status mdp_resume_prepare_all(const mdp_comm *comm, mdp_resume *resume) {
    MDP_AGREE(comm, comm->rank == 0 ? prepare(resume) : mdp_ok());
    resume->exists = true;
    return mdp_ok();
}

/* What every rank has read is as it was when that rank first opened it, and on rank 0 as it was when it was listed. */
static mdp_status check_inputs(const mdp_comm *comm, mdp_reader *reader) {
    MDP_TRY(mdp_reader_check(reader));
    return comm->rank == 0 ? mdp_catalogue_check(mdp_reader_catalogue(reader)) : mdp_ok();
}

mdp_status mdp_resume_check_inputs_all(const mdp_comm *comm, mdp_resume *resume, mdp_reader *reader) {
    mdp_status status = mdp_agree_all(comm, check_inputs(comm, reader));
    if (status.code != MDP_BAD_INPUT || !resume || !resume->exists) return status;
    mdp_status removed = comm->rank == 0 ? mdp_workshop_forget(resume->workshop) : mdp_ok();
    (void)removed; /* the first error is the one to tell */
    resume->exists = resume->saved = false;
    return status;
}
