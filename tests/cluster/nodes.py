"""Nodes of a cluster, made of namespaces of this machine, and MPI jobs that run on them over TCP.

A node has a host name, a network and a /dev/shm of its own; all nodes see one file system, but the folder `local` of the cluster is each
node's own. A cable leads from each node's eth0 to a switch; cables have no route to anywhere else. Faults are real: a cable is pulled by
taking the interface down, a node dies as all its processes do. Everything vanishes with the processes, and those of the nodes end with
this one. Needs root, iproute2 and util-linux.
"""
import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import mdp

NETWORK = "10.77.0"
AGENT = """#!/bin/sh
# Stands for ssh: AGENT HOST COMMAND ... runs the command on the node, whose environment is a login's, not the caller's.
host=$1
shift
exec nsenter -t "$(cat {folder}/nodes/"$host")" -n -u -i -m -T -- env -i PATH="$PATH" HOME="$HOME" TMPDIR={folder}/local {login} sh -c "$*"
"""
HOLD = """
set -e
hostname "$1"
mount -t tmpfs -o size="$2" tmpfs /dev/shm
mount --bind "$3/hosts" /etc/hosts
mount --bind "$3/local-$1" "$3/local"
echo $$
exec cat
"""


def why_not():
    """Why there can be no nodes here; None: there can."""
    if os.geteuid() != 0:
        return "nodes are made of namespaces, which takes root"
    missing = [name for name in ("unshare", "nsenter", "ip", "tc") if not shutil.which(name)]
    if missing:
        return f"nodes need {', '.join(missing)} (packages util-linux, iproute2)"
    if "Open MPI" not in subprocess.run([os.environ.get("MPIEXEC", "mpirun"), "--version"], capture_output=True, text=True, check=False).stdout:
        return "jobs on nodes are started by Open MPI"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["unshare", "--net", "--uts", "--ipc", "--mount", "ip", "link", "add", "try", "type", "bridge"], check=True,
                       capture_output=True, timeout=30)
        return None
    return "this system does not let root make namespaces and bridges"


def do(*words, **how):
    """Run a command that must succeed; its output."""
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False, **how)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


def hold(*words):
    """A process that keeps namespaces and ends with this one; it, and the process to enter."""
    holder = subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = holder.stdout.readline().strip()
    assert said, f"{words}: no namespaces"
    return holder, int(said)


@dataclasses.dataclass
class Node:
    name: str
    number: int  # from 1
    holder: subprocess.Popen
    pid: int     # in its namespaces
    switch: int
    processes_of: str = ""

    def __post_init__(self):
        self.processes_of = os.readlink(f"/proc/{self.pid}/ns/net")

    @property
    def address(self):
        return f"{NETWORK}.{self.number}"

    def words(self, *words, cwd="/"):
        """A command line that runs the command on this node, in a folder as it is there."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-T", "--"]
        return [*enter, "sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(cwd), *map(str, words)]

    def do(self, *words):
        return do(*self.words(*words))

    def processes(self):
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns" / "net") == self.processes_of:
                    found.append(int(folder.name))
        return found

    def running(self, name):
        """Processes of a program."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == name[:15]:
                    found.append(pid)
        return found

    def pull_cable(self):
        self.do("ip", "link", "set", "eth0", "down")

    def plug_in(self):
        self.do("ip", "link", "set", "eth0", "up")

    def end_processes(self, spare=()):
        """Of this node, all at once, but those spared."""
        for _ in range(200):
            left = [pid for pid in self.processes() if pid not in spare]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.02)
        raise AssertionError(f"processes of {self.name} do not end: {left}")

    def crash(self):
        """All programs end; the system goes on, and tells those who were connected."""
        self.end_processes(spare=[self.pid])

    def lose_power(self):
        """Nobody is told. The node is gone for good."""
        self.pull_cable()
        self.end_processes()
        self.holder.wait()

    def limit(self, gigabit):
        """Both directions of the cable; 0: no limit."""
        for pid, link in ((self.pid, "eth0"), (self.switch, f"port{self.number}")):
            enter = ["nsenter", "-t", str(pid), "-n", "tc", "qdisc"]
            subprocess.run([*enter, "del", "dev", link, "root"], capture_output=True, check=False)
            if gigabit:
                burst = max(256, int(gigabit * 1e6 / 8 / 250))  # KiB; what comes in a tick of a slow clock
                do(*enter, "add", "dev", link, "root", "tbf", "rate", f"{int(gigabit * 1000)}mbit", "burst", f"{burst}kb", "latency", "100ms")

    def traffic(self):
        """Bytes received and sent by its interface since it is there, as the kernel counts them."""
        for line in pathlib.Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "eth0":
                return int(numbers.split()[0]), int(numbers.split()[8])
        raise AssertionError(f"{self.name} has no eth0")


class Cluster:
    """Nodes with these names, for the time of a `with`. login: variables that a login on a node has; shm: size of /dev/shm;
    clocks: seconds by which each node's monotonic clock is ahead; detect: seconds after which a node that has fallen silent is missed, where
    something waits for an answer from it (systems give up after 15 minutes) and where nothing does (Open MPI asks after 5, and has no answer
    after 8)."""

    def __init__(self, names, login=None, shm="256m", clocks=None, detect=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mdp-cluster."))  # short: names of sockets begin with it
        self.folder.chmod(0o755)
        self.nodes = []
        self.login = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **(login or {})}
        self.names, self.shm, self.clocks, self.detect = names, shm, clocks or [0] * len(names), detect

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            node.end_processes()
            node.holder.wait()
        if hasattr(self, "switch"):
            self.switch.kill()
            self.switch.wait()
        shutil.rmtree(self.folder)

    def __getitem__(self, name):
        return next(node for node in self.nodes if node.name == name)

    def build(self):
        for name in ("nodes", "local"):
            (self.folder / name).mkdir()
        lines = [f"{NETWORK}.{i + 1} {name}\n" for i, name in enumerate(self.names)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        self.agent = self.folder / "agent"
        login = " ".join(f"{key}='{value}'" for key, value in self.login.items())
        self.agent.write_text(AGENT.format(folder=self.folder, login=login))
        self.agent.chmod(0o755)
        self.switch, pid = hold("unshare", "--net", "sh", "-c", "echo $$; exec cat")
        within = ["nsenter", "-t", pid, "-n", "ip", "link"]
        do(*within, "add", "switch", "type", "bridge")
        do(*within, "set", "switch", "up")
        for name, clock in zip(self.names, self.clocks):
            self.add(name, clock, pid, within)

    def add(self, name, clock, switch, within):
        (self.folder / f"local-{name}").mkdir(exist_ok=True)
        number = len(self.nodes) + 1
        ahead = ["--time", "--monotonic", clock, "--boottime", clock, "--fork", "--kill-child"] if clock else []
        holder, pid = hold("unshare", "--net", "--uts", "--ipc", "--mount", *ahead, "sh", "-c", HOLD, "hold", name, self.shm, self.folder)
        node = Node(name, number, holder, pid, switch)
        self.nodes.append(node)
        (self.folder / "nodes" / name).write_text(str(pid))
        do(*within, "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", pid)
        do(*within, "set", f"port{number}", "master", "switch", "mtu", 9000, "up")
        node.do("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
        node.do("ip", "link", "set", "eth0", "mtu", 9000, "up")
        node.do("ip", "link", "set", "lo", "up")
        if self.detect:
            node.do("sh", "-c", f"echo {math.ceil(math.log2(self.detect / 0.2))} >/proc/sys/net/ipv4/tcp_retries2")  # 0.2 s, 0.4 s, 0.8 s, ...

    def traffic(self):
        """Bytes that left the nodes so far."""
        return sum(node.traffic()[1] for node in self.nodes)

    # ---- jobs

    def mpirun(self, nodes, ranks, *words, options=(), env=None):
        """Command line and environment of a job with so many ranks on each of the nodes."""
        settings = {"plm_rsh_agent": self.agent, "btl_tcp_if_include": "eth0", "oob_tcp_if_include": "eth0", "btl": "self,vader,tcp",
                    "mpi_yield_when_idle": 1, "hwloc_base_binding_policy": "none", "rmaps_base_oversubscribe": 1, "plm_rsh_no_tree_spawn": 1}
        if self.detect:
            settings.update(oob_tcp_keepalive_time=max(1, self.detect - 3), oob_tcp_keepalive_intvl=1, oob_tcp_keepalive_probes=3)
        exports = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HWLOC_HIDE_ERRORS": "2", **(env or {})}
        for key in ("OPENBLAS_CORETYPE",):
            if key in os.environ:
                exports.setdefault(key, os.environ[key])
        command = nodes[0].words("mpirun", "--prefix", "/usr", "--host", ",".join(f"{node.name}:{ranks}" for node in nodes),
                                 "-n", ranks * len(nodes), *options, *(word for key in exports for word in ("-x", key)), *words)
        mca = {f"OMPI_MCA_{key}": str(value) for key, value in settings.items()}
        return command, {**os.environ, **self.login, **mca, **exports, "TMPDIR": str(self.folder / "local")}

    def start(self, nodes, ranks, *words, within=(), **how):
        """Begin moe-dist-prune on nodes, each rank's by the command `within`."""
        command, env = self.mpirun(nodes, ranks, *within, mdp.PROGRAM, *words, **how)
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                start_new_session=True)

    def run(self, nodes, ranks, *words, timeout=120, **how):
        """Exit code, and what was said."""
        process = self.start(nodes, ranks, *words, **how)
        return process, end(process, timeout)

    def succeed(self, nodes, ranks, *words, **how):
        process, said = self.run(nodes, ranks, *words, **how)
        assert process.returncode == 0, f"{process.args}: {process.returncode}\n{said}"
        return said


def wait_for(is_so, seconds, what):
    limit = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < limit, f"no {what} after {seconds} s"
        time.sleep(0.01)


def end(process, seconds):
    """What a job said until its end, which must come in time."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        raise AssertionError(f"no end after {seconds} s: {process.args}\n{said}") from None
