"""A real Slurm on the nodes of a cluster: slurmctld on the first, a slurmd on each, all with one key of munge."""
import os
import re
import shutil
import subprocess
import time

from cluster import nodes

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue"]
CONFIG = """
ClusterName=nodes
SlurmctldHost={first.name}({first.address})
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=pmix
ReturnToService=2
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout={timeout}
MessageTimeout=5
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2,requeue_delay=1
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """Why there can be no Slurm here; None: there can."""
    reason = nodes.why_not()
    if reason:
        return reason
    missing = [name for name in PROGRAMS if not find(name)]
    return f"Slurm needs {', '.join(missing)} (packages slurmctld, slurmd, slurm-client, munge)" if missing else None


def find(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Slurm:
    """Daemons on all nodes of a cluster, for the time of a `with`. timeout: seconds until a silent node counts as down."""

    def __init__(self, cluster, timeout=20, sockets=1, cores=2):
        self.cluster, self.folder, self.daemons = cluster, cluster.folder, []
        self.conf = self.folder / "slurm.conf"
        self.env = {**os.environ, **cluster.login, "SLURM_CONF": str(self.conf), "TMPDIR": str(self.folder / "local")}
        lines = [f"NodeName={node.name} NodeAddr={node.address} Sockets={sockets} CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=1000"
                 for node in cluster.nodes]
        self.conf.write_text(CONFIG.format(first=cluster.nodes[0], folder=self.folder, timeout=timeout, nodes="\n".join(lines)))

    def __enter__(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={self.folder}/local\n")  # nodes have one /tmp here
        (self.folder / "state").mkdir()
        first = self.cluster.nodes[0]
        # One munge for all: its socket is in the file system that they share.
        self.daemon("munged", first, "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                    f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed")
        self.daemon("slurmctld", first, "-D")
        for node in self.cluster.nodes:
            self.join(node)
        self.wait_for(lambda: set(self.states().values()) == {"idle"}, 30, lambda: f"idle nodes: {self.states()}")
        return self

    def __exit__(self, *_):
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()

    def join(self, node):
        """Start the node's slurmd."""
        self.daemon("slurmd", node, "-D", "-N", node.name)

    def daemon(self, name, node, *words):
        log = (self.folder / f"{name}-{node.name}.log").open("w")
        self.daemons.append(subprocess.Popen(node.words(find(name), *words), env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True))

    def logs(self):
        """The last complaints of all daemons."""
        lines = {path.stem: [line for line in path.read_text().splitlines() if "rror" in line][-8:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"{name}: {line}" for name, found in lines.items() for line in found)

    def wait_for(self, is_so, seconds, what):
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, f"no {what()} after {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def ask(self, *words, **how):
        """A command of Slurm, on the first node."""
        return nodes.do(*self.cluster.nodes[0].words(*words), env=self.env, **how)

    def states(self):
        """{node: idle, alloc, down*, ...}"""
        said = subprocess.run(self.cluster.nodes[0].words("sinfo", "--noheader", "--Node", "--format=%N %t"), env=self.env, capture_output=True,
                              text=True, check=False).stdout
        return dict(line.split() for line in said.splitlines())

    # ---- jobs

    def submit(self, *words, cwd, env=None):
        """sbatch; the number of the job."""
        said = nodes.do(*self.cluster.nodes[0].words("sbatch", "--parsable", *words, cwd=cwd), env={**self.env, **(env or {})})
        return int(said.split()[-1])

    def job(self, number):
        """What Slurm says of it: {JobState: ..., NodeList: ..., Restarts: ..., ExitCode: ...}"""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", number).splitlines()[0]))

    def is_over(self, number):
        return self.job(number)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

    def wait(self, number, seconds):
        """Until a job is over; what Slurm then says of it."""
        self.wait_for(lambda: self.is_over(number), seconds, lambda: f"end of job {number}: {self.job(number)}")
        return self.job(number)

    def wait_for_restart(self, number, seconds=120):
        """Until a job that was put back into the queue runs again: as soon as what allowed it to run before has expired (cred_expire)."""
        self.wait_for(lambda: self.job(number)["Restarts"] == "1" and self.job(number)["JobState"] == "RUNNING", seconds,
                      lambda: f"restart of job {number}: {self.job(number)}")
