"""The job scripts: run for real under mpirun -n 2, and with launchers that only record how they were called."""
import os
import re
import shutil
import signal
import subprocess

import pytest

import mdp

JOBS = mdp.ROOT / "jobs"
SCRIPTS = ["slurm.sbatch", "pbs.sh", "lsf.sh", "mpirun.sh"]
MODEL = mdp.GOLDEN / "mixtral"
HERE = "mpirun -n 2 --oversubscribe --bind-to none"


def start(script, *words, cwd=None, **env):
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return subprocess.run(["bash", str(script), *map(str, words)], capture_output=True, text=True, check=False, timeout=300, cwd=cwd,
                          env={**os.environ, **root, "MDP_PROGRAM": str(mdp.PROGRAM), **env})


@pytest.fixture
def arguments(tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    return ["--model", MODEL, "--tokens", tokens, "--method", "frequency", "--quiet"]


@pytest.mark.parametrize("name", ["common.sh", *SCRIPTS])
def test_bash_can_read_it(name):
    assert subprocess.run(["bash", "-n", str(JOBS / name)], check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    names = [f"jobs/{name}" for name in ["common.sh", *SCRIPTS]]
    result = subprocess.run(["shellcheck", "-x", *names], cwd=mdp.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prunes(name, arguments, tmp_path):
    result = start(JOBS / name, *arguments, "--keep", 4, "--out", tmp_path / "out", LAUNCH=HERE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "model.h5").is_file()
    for fact in ("placement by: mpirun -n 2", f"program   {mdp.PROGRAM}", "nodes     1", "modules   ", "ended     code 0"):
        assert fact in result.stdout


@pytest.mark.parametrize("name", ["slurm.sbatch", "pbs.sh"])
def test_exit_code_of_the_program_is_the_scripts(name, arguments, tmp_path):
    result = start(JOBS / name, *arguments, "--keep", 1, "--out", tmp_path / "out", LAUNCH=HERE)
    assert result.returncode == 2, result.stdout + result.stderr


def test_arguments_from_the_environment_where_a_batch_system_passes_none(arguments, tmp_path):
    words = " ".join(map(str, [*arguments, "--keep", 4, "--out", tmp_path / "out"]))
    result = start(JOBS / "lsf.sh", LAUNCH=HERE, MDP_ARGUMENTS=words)
    assert result.returncode == 0 and (tmp_path / "out" / "model.h5").is_file(), result.stdout + result.stderr


def test_staged_model_gives_the_same_bytes_and_goes(arguments, tmp_path):
    """Also through a folder of links with a hidden one in it, as in a Hugging Face cache."""
    linked = tmp_path / ".cache" / "mixtral"
    (linked / ".git").mkdir(parents=True)
    (linked / ".git" / "copy").write_bytes(b"weights again")
    for path in MODEL.iterdir():
        (linked / path.name).symlink_to(path)
    stages = tmp_path / "seen"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nfind {tmp_path}/local >>{stages}\nexec {mdp.PROGRAM} "$@"\n')
    program.chmod(0o755)
    words = [*arguments[2:], "--keep", 4, "--format", "both"]
    for model, out, more in ((f"--model={MODEL}", "plain", []), (f"--model={linked}", "staged", ["--stage", "$TMPDIR/local"])):
        result = start(JOBS / "pbs.sh", model, *words, "--out", tmp_path / out, *more, LAUNCH=HERE, TMPDIR=str(tmp_path),
                       MDP_PROGRAM=str(program))
        assert result.returncode == 0, result.stdout + result.stderr
    names = ["plan.json", "stats.h5", "model.h5", "hf/config.json", "hf/model.safetensors"]
    plain, staged = mdp.digests(tmp_path / "plain"), mdp.digests(tmp_path / "staged")
    assert [plain[name] for name in names] == [staged[name] for name in names]
    seen = stages.read_text()
    assert "/mixtral/model.safetensors" in seen and ".git" not in seen
    assert list((tmp_path / "local").iterdir()) == []


def test_staging_makes_a_folder_that_is_its_users_alone(arguments, tmp_path):
    """A folder that another made before under the name of job and process is not taken for the copy."""
    local = tmp_path / "local"
    local.mkdir()
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nfor word; do case $word in {local}/*) stat -c "mode %a" "$(dirname "$word")";; esac; done\n'
                       f'exec {mdp.PROGRAM} "$@"\n')
    program.chmod(0o755)
    trap = tmp_path / "trap"
    trap.write_text(f'mkdir -p {local}/moe-dist-prune.none.$$/mixtral\nexec bash {JOBS}/mpirun.sh "$@"\n')
    result = start(trap, "--stage", local, *arguments, "--keep", 4, "--out", tmp_path / "out", LAUNCH=HERE, MDP_PROGRAM=str(program))
    assert result.returncode == 0 and (tmp_path / "out" / "model.h5").is_file(), result.stdout + result.stderr
    assert set(re.findall("mode (.*)", result.stdout)) == {"700"}
    assert [path.name[:20] for path in local.iterdir()] == ["moe-dist-prune.none."]  # the other's is left alone


def test_processors_are_counted_whatever_the_environment_says_of_threads():
    """Modules of many sites set OMP_NUM_THREADS, which nproc takes for an answer."""
    count = [subprocess.run(["bash", "-c", f". {JOBS}/common.sh; mdp_count_cores"], capture_output=True, text=True, check=True,
                            env={**os.environ, "OMP_NUM_THREADS": threads}).stdout for threads in ["1", "77"]]
    assert count[0] == count[1] and int(count[0].split()[0]) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("kind", ["open", "link", "file", "another's"])
def test_staging_trusts_no_folder_that_it_did_not_make(kind, tmp_path):
    copy = tmp_path / "local" / "copy"
    copy.parent.mkdir()
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    {"open": lambda: copy.mkdir(mode=0o755), "link": lambda: copy.symlink_to(other), "file": copy.touch,
     "another's": lambda: copy.mkdir(mode=0o700)}[kind]()
    if kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(copy, 65534, 65534)
    script = f". {JOBS}/common.sh; mdp_copy_model {MODEL} "
    result = subprocess.run(["bash", "-c", script + str(copy)], capture_output=True, text=True, check=False)
    assert result.returncode == 73 and "--stage: cannot make" in result.stderr and not list(other.iterdir())
    for _ in range(2):  # two processes of one node
        assert subprocess.run(["bash", "-c", script + str(tmp_path / "local" / "ours")], check=False).returncode == 0
    assert (tmp_path / "local" / "ours" / "mixtral" / "config.json").is_file()


def test_staged_file_goes_also_when_the_program_fails(arguments, tmp_path):
    (tmp_path / "some.h5").write_bytes(b"no checkpoint")
    result = start(JOBS / "mpirun.sh", "--stage", tmp_path / "local", "--model", tmp_path / "some.h5", *arguments[2:], "--keep", 4,
                   "--out", tmp_path / "out", LAUNCH=HERE)
    assert result.returncode == 65 and "/some.h5:" in result.stderr and "staged" in result.stdout, result.stdout + result.stderr
    assert list((tmp_path / "local").iterdir()) == []


def test_a_link_to_nothing_is_named_of_a_staged_model_too(arguments, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(MODEL / name)
    (model / "tokenizer.json").symlink_to("../blobs/gone")
    result = start(JOBS / "mpirun.sh", "--stage", tmp_path / "local", "--model", model, *arguments[2:], "--keep", 4, "--out", tmp_path / "out", LAUNCH=HERE)
    assert result.returncode == 65 and "tokenizer.json: is a link to a file that is not there" in result.stderr, result.stdout + result.stderr


@pytest.mark.parametrize("words, sentence", [
    (["--stage", "/dev/null/x", "--model", MODEL], "/dev/null"),
    (["--stage", "there", "--model", "nowhere"], "--stage: there is no .*nowhere"),
    (["--stage", "$NO_SUCH_VARIABLE", "--model", MODEL], r"\$NO_SUCH_VARIABLE is not set"),
    (["--stage", "there", "info"], "--model, which is not given"),
    (["--each"], "--each: its value is missing"),
])
def test_what_cannot_be_done_is_said_before_the_program_starts(words, sentence, tmp_path):
    result = start(JOBS / "mpirun.sh", *words, LAUNCH=HERE, TMPDIR=str(tmp_path))
    assert result.returncode != 0 and re.search(sentence, result.stderr), result.stdout + result.stderr
    assert "command   " not in result.stdout


def echo(script, *words, **env):
    """The command lines that a script would start."""
    result = start(script, *words, LAUNCH="echo +", MDP_PROGRAM="true", **env)
    return result.returncode, [line for line in result.stdout.splitlines() if line.startswith("+ ")], result.stderr


@pytest.mark.parametrize("name, variable", [("slurm.sbatch", "SLURM_ARRAY_TASK_ID"), ("pbs.sh", "PBS_ARRAY_INDEX"), ("lsf.sh", "LSB_JOBINDEX")])
def test_element_of_an_array_takes_its_value(name, variable):
    words = ["--each", "0.75,0.5,a&b", "plan", "--keep-ratio", "{}", "--out", "p-{}", "--then", "apply", "--plan", "p-{}"]
    assert echo(JOBS / name, *words, **{variable: "2"})[:2] == (0, ["+ true plan --keep-ratio 0.5 --out p-0.5", "+ true apply --plan p-0.5"])
    assert echo(JOBS / name, *words, **{variable: "3"})[1][1] == "+ true apply --plan p-a&b"
    code, lines, said = echo(JOBS / name, *words, **{variable: "4"})
    assert (code, lines) == (2, []) and "values 1 to 3" in said
    code, lines, said = echo(JOBS / name, "info", **{variable: "1"})
    assert (code, lines) == (2, []) and "--each names no values" in said


def test_without_an_array_the_values_come_one_after_another():
    assert echo(JOBS / "mpirun.sh", "--each", "a,b", "x{}")[1] == ["+ true xa", "+ true xb"]
    assert echo(JOBS / "lsf.sh", "x{}", LSB_JOBINDEX="0")[1] == ["+ true x{}"]


@pytest.mark.parametrize("name, variable", [("slurm.sbatch", "SLURM_ARRAY_TASK_ID"), ("pbs.sh", "PBS_ARRAY_INDEX"),
                                            ("pbs.sh", "PBS_ARRAYID")])
def test_element_0_of_an_array_does_not_do_the_work_of_all(name, variable):
    code, lines, said = echo(JOBS / name, "--each", "a,b", "x{}", **{variable: "0"})
    assert (code, lines) == (2, []) and "element 0 of the job array: --each has values 1 to 2" in said


BATCHES = {"slurm.sbatch": ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
           "pbs.sh": ("PBS_JOBID", "PBS_ARRAY_INDEX", "MDP_RESTARTS"), "lsf.sh": ("LSB_JOBID", "LSB_JOBINDEX", "MDP_RESTARTS")}


@pytest.fixture
def job(tmp_path):
    """job(NAME, COMMAND ...) of bash, the last of which ends with 75 -> the lines that were run, in a queue that takes jobs back."""
    def run(name, *commands, index="0", restarts=0, **env):
        number, element, restart = BATCHES[name]
        words = [word for command in (*commands, "exit 75") for word in ("--then", "-c", command)][1:]
        index = {} if index == "0" and element != "LSB_JOBINDEX" else {element: index}
        result = start(JOBS / name, *(["--each", "a,b"] if index.get(element, "0") != "0" else []), *words, cwd=tmp_path, LAUNCH="env",
                       **{"MDP_PROGRAM": "bash", "MDP_REQUEUE": "true", number: "7", restart: str(restarts), **index, **env})
        assert result.returncode == 75, result.stdout + result.stderr
        return [line[4:] for line in result.stdout.splitlines() if line.startswith("ran ")]
    return run


@pytest.mark.parametrize("name", BATCHES)
def test_elements_of_an_array_have_done_their_own_commands(name, job):
    """Also where the batch system gives them one number, as LSF does."""
    assert job(name, "echo ran {}", index="1") == ["a"]
    assert job(name, "echo ran {}", index="2", restarts=1) == ["b"]
    assert job(name, "echo ran {}", index="1", restarts=1) == []
    assert job(name, "echo ran {}", index="2", restarts=1) == []


@pytest.mark.parametrize("name", BATCHES)
def test_what_an_earlier_job_of_the_number_did_is_not_done(name, job, tmp_path):
    assert job(name, "echo ran 1", "echo ran 2") == ["1", "2"]
    assert job(name, "echo ran 1", "echo ran 3", restarts=1) == ["3"]
    assert len(list(tmp_path.glob(".moe-dist-prune.*"))) == 1
    assert job(name, "exit 75") == [] and not list(tmp_path.glob(".moe-dist-prune.*"))


def test_what_is_done_is_written_through_no_link_and_read_from_no_link(job, tmp_path):
    (tmp_path / "mine").write_text("-c echo\\ ran\\ 1 \n1\n")
    (tmp_path / ".moe-dist-prune.7.done").symlink_to("mine")
    assert job("lsf.sh", "echo ran 1", restarts=1) == ["1"]
    assert (tmp_path / "mine").read_text().startswith("-c echo") and not (tmp_path / ".moe-dist-prune.7.done").is_symlink()
    assert job("lsf.sh", "echo ran 1", restarts=1) == []


def test_clusters_that_share_a_folder_have_the_same_numbers(job):
    assert job("slurm.sbatch", "echo ran 1", SLURM_CLUSTER_NAME="one") == ["1"]
    assert job("slurm.sbatch", "echo ran 1", SLURM_CLUSTER_NAME="two", restarts=1) == ["1"]


def test_the_first_command_that_fails_ends_the_job():
    result = start(JOBS / "mpirun.sh", "-c", "exit 7", "--then", "-c", "echo never", LAUNCH="env", MDP_PROGRAM="bash")
    assert result.returncode == 7 and "ended     code 7" in result.stdout and "\nnever" not in result.stdout, result.stdout


@pytest.fixture
def recorder(tmp_path):
    """Launchers in a folder of their own that print their arguments; lscpu shows 2 sockets of 4 cores, 2 threads each, 2 domains."""
    folder = tmp_path / "bin"
    folder.mkdir()
    cpus = [(core, core // 4) for _ in range(2) for core in range(8)]
    rows = {"CORE,SOCKET": [f"{core},{socket}" for core, socket in cpus], "NODE": [str(socket) for _, socket in cpus]}
    scripts = {"srun": 'printf "[%s]" "$OMP_NUM_THREADS threads" srun "$@"', "nproc": "echo 16",
               "mpirun": 'case "$1" in --version) echo "mpirun (Open MPI) 4.1.4";; *) printf "[%s]" "$OMP_NUM_THREADS threads" mpirun "$@";; esac',
               "ompi_info": "echo mca:plm:rsh:version",
               "lscpu": "case \"$1\" in " + " ".join(f"-p={key}) printf '%s\\n' {' '.join(lines)};;" for key, lines in rows.items()) + " esac"}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("placement, ranks, threads", [("numa", 2, 4), ("core", 8, 1)])
def test_placement_under_srun_and_mpirun(placement, ranks, threads, recorder):
    said = start(JOBS / "slurm.sbatch", "--out", "x y", PLACEMENT=placement, SLURM_JOB_NUM_NODES="3", **recorder).stdout
    for word in (f"--ntasks-per-node={ranks}", f"--ntasks={3 * ranks}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=1",
                 "--threads-per-core=1", "--cpu-bind=cores", "x y",
                 f"{threads} threads"):
        assert f"[{word}]" in said, said
    said = start(JOBS / "mpirun.sh", "--out", "x y", PLACEMENT=placement, **recorder).stdout
    for word in (f"ppr:{ranks}:node:pe={threads}", "x y", f"{threads} threads"):
        assert f"[{word}]" in said, said


@pytest.mark.parametrize("name, variable", [("pbs.sh", "PBS_NODEFILE"), ("lsf.sh", "LSB_DJOB_HOSTFILE")])
def test_open_mpi_without_the_batch_system_is_told_the_hosts(name, variable, recorder, tmp_path):
    (tmp_path / "hosts").write_text("n1\nn1\nn2\nn2\n")
    said = start(JOBS / name, "info", **{variable: str(tmp_path / "hosts")}, **recorder).stdout
    assert f"[--hostfile][{tmp_path / 'hosts'}]" in said and "nodes     2: n1 n2" in said, said
    (tmp_path / "bin" / "ompi_info").write_text("#!/bin/sh\necho mca:plm:tm:version; echo mca:plm:lsf:version; yes | head -c 1000000\n")
    assert "--hostfile" not in start(JOBS / name, "info", **{variable: str(tmp_path / "hosts")}, **recorder).stdout


def test_other_mpirun_is_told_the_numbers(recorder, tmp_path):
    (tmp_path / "hosts").write_text("n1\nn2\nn3\n")
    (tmp_path / "bin" / "mpirun").write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    said = start(JOBS / "pbs.sh", "info", PBS_NODEFILE=str(tmp_path / "hosts"), **recorder).stdout
    assert "[-n][6][-ppn][2][-bind-to][core:4]" in said, said


def test_wrong_placement_is_refused(recorder):
    result = start(JOBS / "mpirun.sh", PLACEMENT="socket", **recorder)
    assert result.returncode == 2 and "PLACEMENT=socket" in result.stderr


def test_a_copy_of_the_script_finds_its_library(tmp_path, recorder):
    """Slurm runs a copy from its spool folder."""
    (tmp_path / "spooled").write_text((JOBS / "slurm.sbatch").read_text())
    result = start(tmp_path / "spooled", "--help", SLURM_SUBMIT_DIR=str(mdp.ROOT), **recorder)
    assert result.returncode == 0 and "[srun]" in result.stdout, result.stdout + result.stderr


def test_a_copy_far_from_its_library_says_what_to_set(tmp_path, recorder):
    for name in ("slurm.sbatch", "pbs.sh", "lsf.sh"):
        (tmp_path / "spooled").write_text((JOBS / name).read_text())
        far = {"SLURM_SUBMIT_DIR": str(tmp_path), "PBS_O_WORKDIR": str(tmp_path), "LS_SUBCWD": str(tmp_path), **recorder}
        result = start(tmp_path / "spooled", "info", **far)
        assert result.returncode == 2 and "export MDP_JOBS" in result.stderr, result.stdout + result.stderr
        assert start(tmp_path / "spooled", "info", MDP_JOBS=str(JOBS), **far).returncode == 0


@pytest.fixture
def queue(recorder, tmp_path):
    """A Slurm whose scontrol only notes what it is asked; the job runs where its files are."""
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    return {**recorder, "SLURM_JOB_ID": "7", "MDP_JOBS": str(JOBS)}


def done_commands(path):
    lines = path.read_text().splitlines()
    assert all(line.startswith("observe ") for line in lines)
    return len(lines)


def test_stopped_job_goes_back_into_the_queue_and_on(arguments, queue, tmp_path):
    """Three command lines: the first is done when the second is stopped, and is not repeated."""
    (tmp_path / "bin" / "mpirun").unlink()
    model, tokens = arguments[1], arguments[3]
    words = ["observe", "--model", model, "--tokens", tokens, "--out", tmp_path / "stats.h5", "--then",
             "observe", "--model", model, "--tokens", tokens, "--out", tmp_path / "again.h5", "--max-seconds", "0.1", "--then",
             "plan", "--stats", tmp_path / "again.h5", "--method", "reap", "--keep", 4, "--out", tmp_path / "plan.json"]
    done = tmp_path / ".moe-dist-prune.7.done"
    for n in range(10):
        result = start(JOBS / "slurm.sbatch", *words, LAUNCH=HERE, SLURM_RESTART_COUNT=str(n), cwd=tmp_path, **queue)
        assert ("1 was done before" in result.stdout) == (n > 0) and (" --resume" in result.stdout) == (n > 0), result.stdout
        if result.returncode == 0:
            break
        assert result.returncode == 75 and "ended     code 75" in result.stdout and done_commands(done) == 1, result.stdout + result.stderr
    assert n > 0 and (tmp_path / "asked").read_text().count("requeue 7\n") == n and not done.exists()
    assert (tmp_path / "stats.h5").read_bytes() == (tmp_path / "again.h5").read_bytes() and (tmp_path / "plan.json").exists()


def test_signal_to_the_script_reaches_the_program(queue, tmp_path):
    (tmp_path / "program").write_text("#!/bin/bash\ntrap 'echo saved; exit 75' USR1\necho ready\nwhile :; do sleep 0.1; done\n")
    (tmp_path / "program").chmod(0o755)
    process = subprocess.Popen(["bash", str(JOBS / "slurm.sbatch"), "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                               env={**os.environ, **queue, "LAUNCH": "env", "MDP_PROGRAM": str(tmp_path / "program")})
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGUSR1)
    said, complaints = process.communicate(timeout=30)
    assert process.returncode == 75 and "saved" in said and "requeue   scontrol requeue 7" in said, said + complaints
    assert (tmp_path / "asked").read_text().endswith("requeue 7\n")


def signalled(queue, tmp_path, *words):
    """A job of bash commands, the first of which sends the script SIGUSR1."""
    tell = f"kill -USR1 $(cat {tmp_path}/script)"
    (tmp_path / "begin").write_text(f'echo $$ >{tmp_path}/script\nexec bash {JOBS}/slurm.sbatch "$@"\n')
    return start(tmp_path / "begin", *(word.replace("TELL", tell) for word in words), LAUNCH="env", cwd=tmp_path, **{**queue, "MDP_PROGRAM": "bash"})


def test_signal_between_two_programs_stops_the_job_before_the_next(queue, tmp_path):
    result = signalled(queue, tmp_path, "-c", "trap '' USR1; TELL; sleep 0.5; echo first", "--then", "-c", "echo never")
    assert result.returncode == 75 and "\nfirst\n" in result.stdout and "\nnever" not in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "asked").read_text().endswith("requeue 7\n")
    (tmp_path / "asked").unlink()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "bin" / "cp").write_text(f'#!/bin/sh\nkill -USR1 $(cat {tmp_path}/script)\nexec /bin/cp "$@"\n')
    (tmp_path / "bin" / "cp").chmod(0o755)
    result = signalled(queue, tmp_path, "--stage", "local", "-c", "echo never", "--model", str(model))
    assert result.returncode == 75 and "staged " in result.stdout and "\nnever" not in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "asked").read_text().endswith("requeue 7\n") and list((tmp_path / "local").iterdir()) == []


def test_a_program_that_dies_of_the_signal_while_it_starts_goes_back_into_the_queue(queue, tmp_path):
    result = signalled(queue, tmp_path, "-c", "TELL; sleep 20")
    assert result.returncode == 75 and "ended     code 75" in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "asked").read_text().endswith("requeue 7\n")


@pytest.mark.parametrize("version, code", [("4.0.2", 75), ("4.2.1", 0)])
def test_a_launcher_that_loses_codes_is_not_believed_after_a_signal(version, code, queue, tmp_path):
    (tmp_path / "bin" / "mpirun").write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then printf 'HYDRA build details:\\n    Version:     {version}\\n'; exit 0; fi
[ -z "$TELL" ] || kill -USR1 $(cat {tmp_path}/script)
exec 2>&1; trap 'exit 0' USR1; sleep 1 & wait
""")
    (tmp_path / "begin").write_text(f'echo $$ >{tmp_path}/script\nexec bash {JOBS}/slurm.sbatch "$@"\n')
    for command in ("run", "merge", "refit"):
        for tell in ("", "1"):
            result = start(tmp_path / "begin", command, "--help", LAUNCH="mpirun", TELL=tell, cwd=tmp_path, **queue)
            assert result.returncode == (code if tell else 0), result.stdout + result.stderr
    assert start(tmp_path / "begin", "plan", LAUNCH="mpirun", TELL="1", cwd=tmp_path, **queue).returncode == 0  # has no resume points


def test_a_job_does_not_go_back_for_ever(queue, tmp_path):
    result = start(JOBS / "slurm.sbatch", "-c", "exit 75", LAUNCH="env", **{**queue, "MDP_PROGRAM": "bash", "SLURM_RESTART_COUNT": "20"})
    assert result.returncode == 75 and "not again: 20 times" in result.stdout, result.stdout + result.stderr
