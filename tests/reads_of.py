"""reads_of.py FOLDER PROGRAM [ARG ...]: run one rank and leave FOLDER/reads-<rank> = bytes that its read calls brought, as the kernel counts."""
import os
import pathlib
import sys

folder, command = sys.argv[1], sys.argv[2:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
child = os.posix_spawnp(command[0], command, os.environ)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and its counts are there still
counts = dict(line.split(": ") for line in pathlib.Path(f"/proc/{child}/io").read_text(encoding="ascii").splitlines())
(pathlib.Path(folder) / f"reads-{rank}").write_text(counts["rchar"], encoding="ascii")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
