#!/usr/bin/env bash
#BSUB -J moe-dist-prune
#BSUB -n 256
#BSUB -R "span[ptile=64]"
#BSUB -x
#BSUB -W 4:00
#BSUB -rn
#BSUB -o moe-dist-prune-%J.log
# The main job under LSF: whole nodes (-n: cores in all, ptile: cores of a node), one rank a NUMA domain.
#
#   export MDP_ARGUMENTS="--model mixtral-8x22b --tokens calib.h5 --method reap --keep-ratio 0.5 --out pruned"
#   bsub <jobs/lsf.sh
#   export MDP_ARGUMENTS="--each 0.75,0.5,0.25 --model mixtral-8x22b --tokens calib.h5 --method reap --keep-ratio {} --out pruned-{}"
#   bsub -J "moe-dist-prune[1-3]" -o moe-dist-prune-%J-%I.log <jobs/lsf.sh
#
# A script that bsub reads gets no arguments, hence the variable; blanks divide it, so no path in it may have one.
# Placement, --stage, --each, --then and the variables that change them: common.sh.
set -euo pipefail
cd "${LS_SUBCWD:-.}"

# LSF runs a copy of this file: common.sh is beside the original.
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
