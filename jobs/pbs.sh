#!/usr/bin/env bash
#PBS -N moe-dist-prune
#PBS -l select=4:ncpus=64:mpiprocs=64
#PBS -l place=scatter:excl
#PBS -l walltime=04:00:00
#PBS -r n
#PBS -j oe
# The main job under PBS (OpenPBS, PBS Professional): whole nodes, one rank a NUMA domain. mpiprocs, the slots that mpirun sees, equals the cores.
#
#   export MDP_ARGUMENTS="--model mixtral-8x22b --tokens calib.h5 --method reap --keep-ratio 0.5 --out pruned"
#   qsub -v MDP_ARGUMENTS,PATH,LD_LIBRARY_PATH jobs/pbs.sh
#   export MDP_ARGUMENTS="--each 0.75,0.5,0.25 --model mixtral-8x22b --tokens calib.h5 --method reap --keep-ratio {} --out pruned-{}"
#   qsub -v MDP_ARGUMENTS,PATH,LD_LIBRARY_PATH -J 1-3 jobs/pbs.sh
#
# PBS passes a script no arguments, hence the variable; blanks divide it, so no path in it may have one.
# Placement, --stage, --each, --then and the variables that change them: common.sh.
set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"

# PBS runs a copy of this file: common.sh is beside the original.
for folder in "${MDP_JOBS:-}" "$(dirname "${BASH_SOURCE[0]}")" ./jobs . \
  "$(dirname "$(command -v "${MDP_PROGRAM:-moe-dist-prune}" || echo .)")/../share/moe-dist-prune/jobs"; do
  if [ -n "$folder" ] && [ -r "$folder/common.sh" ]; then break; fi
done
if [ ! -r "$folder/common.sh" ]; then
  echo "common.sh is not found: export MDP_JOBS, the folder that it is in" >&2
  exit 2
fi
# shellcheck source=jobs/common.sh
. "$folder/common.sh"
LAUNCH=${LAUNCH:-mpirun}
mdp_main "$@"
