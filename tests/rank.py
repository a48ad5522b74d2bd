"""rank.py FOLDER PROGRAM [ARG ...]: run one rank and leave FOLDER/<rank> = its exit code and its peak memory in KiB.

The launcher sees success, so it stops no other rank: a test sees the code of every rank, and a rank that waits for ever.
"""
import os
import resource
import subprocess
import sys

folder, command = sys.argv[1], sys.argv[2:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
code = subprocess.call(command, close_fds=False)  # MPICH hands a rank its connection to the launcher
with open(os.path.join(folder, rank), "w", encoding="utf-8") as out:
    out.write(f"{code} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}\n")
