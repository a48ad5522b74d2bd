"""memory_of.py FOLDER RANKS PROGRAM [ARG ...]: run one rank and leave FOLDER/memory-<rank> = the most bytes that it had.

Pages of files (programs, libraries) count by the share of one of RANKS processes, whatever else runs on this machine.
"""
import os
import pathlib
import re
import subprocess
import sys
import time

folder, ranks, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
most = 0
with subprocess.Popen(command, close_fds=False) as process:
    while process.poll() is None:
        try:
            text = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            text = ""  # it has just ended
        kilobyte = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
        if "Private_Dirty" in kilobyte:
            common = sum(kilobyte[key] for key in ("Private_Clean", "Shared_Clean", "Shared_Dirty"))
            most = max(most, 1024 * (kilobyte["Private_Dirty"] + common // ranks))
        time.sleep(0.003)
(pathlib.Path(folder) / f"memory-{rank}").write_text(str(most), encoding="ascii")
sys.exit(process.returncode)
