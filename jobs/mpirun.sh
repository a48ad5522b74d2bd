#!/usr/bin/env bash
# mpirun.sh ARG ...: moe-dist-prune without a batch system, or inside a job of one that mpirun knows.
#
#   jobs/mpirun.sh --model mixtral-8x22b --tokens calib.h5 --method reap --keep-ratio 0.5 --out pruned
#   LAUNCH="mpirun -n 8 --hostfile hosts" jobs/mpirun.sh ...
#
# Placement, --stage, --each, --then and the variables that change them: common.sh.
set -euo pipefail
# shellcheck source=jobs/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
LAUNCH=${LAUNCH:-mpirun}
mdp_main "$@"
