/* resume.c - the folder of resume points: see resume.h. Rank 0 touches the disk; all ranks agree. */
#include "mdp/resume.h"

#include <string.h>

void mdp_resume_destroy(mdp_resume *resume) {
    if (!resume) return;
    mdp_free(resume->folder);
    mdp_free(resume->identity);
    mdp_free(resume);
}

mdp_status mdp_resume_path(const mdp_resume *resume, const char *name, char **out) {
    return mdp_path_join(out, resume->folder, name);
}

static mdp_status make_folder(const mdp_resume *resume) {
    char *path = NULL, *parent = NULL;
    MDP_TRY(mdp_folder_create(resume->folder));
    mdp_status status = mdp_path_folder(&parent, resume->folder);
    if (status.code == MDP_OK) status = mdp_folder_sync(parent);
    if (status.code == MDP_OK) status = mdp_resume_path(resume, "identity.json", &path);
    if (status.code == MDP_OK) status = mdp_file_write_all(path, resume->identity, (int64_t)strlen(resume->identity));
    mdp_free(parent);
    mdp_free(path);
    return status;
}

mdp_status mdp_resume_make_folder_all(const mdp_comm *comm, mdp_resume *resume) {
    if (resume->exists) return mdp_ok();
    MDP_AGREE(comm, comm->rank == 0 ? make_folder(resume) : mdp_ok());
    resume->exists = true;
    return mdp_ok();
}

mdp_status mdp_resume_remove(const mdp_resume *resume) {
    return mdp_folder_remove(resume->folder);
}

mdp_status mdp_resume_check_inputs_all(const mdp_comm *comm, mdp_resume *resume, mdp_reader *reader) {
    mdp_status status = mdp_agree_all(comm, mdp_reader_check(reader));
    if (status.code != MDP_BAD_INPUT || !resume || !resume->exists) return status;
    mdp_status removed = comm->rank == 0 ? mdp_resume_remove(resume) : mdp_ok();
    (void)removed; /* the first error is the one to tell */
    resume->exists = resume->saved = false;
    return status;
}
