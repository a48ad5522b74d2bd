"""rank.py FOLDER PROGRAM [ARG ...]: run one rank and leave FOLDER/<rank> = its exit code and its peak memory in KiB.

The launcher sees success, so it stops no other rank: a test sees the code of every rank, and a rank that waits for ever. It runs thousands
of times, so it imports next to nothing (-I -S).
"""
import os
import sys

folder, command = sys.argv[1], sys.argv[2:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
child = os.posix_spawnp(command[0], command, os.environ)  # with all descriptors: MPICH hands a rank its connection to the launcher
_, status, usage = os.wait4(child, 0)
with open(os.path.join(folder, rank), "w", encoding="utf-8") as out:
    out.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}\n")
