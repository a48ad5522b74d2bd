# common.sh - sourced by the job scripts: places ranks and threads on nodes, says what runs where, starts it.
# shellcheck shell=bash
#
# Set by the user, all optional:
#   MDP_PROGRAM     the program                                                       (moe-dist-prune)
#   LAUNCH          srun, mpirun, or a whole command such as "mpirun -n 2", used as it stands
#   PLACEMENT       numa: one rank a NUMA domain, threads on its cores; core: one rank a core    (numa)
#   RANKS_PER_NODE, THREADS   override what PLACEMENT gives

# Physical cores that this process may use, and NUMA domains that they lie in, as "cores domains".
mdp_count_cores() {
  local allowed cores domains
  allowed=$(nproc)
  cores=$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  domains=$(lscpu -p=NODE 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  if [ "$cores" -lt 1 ] || [ "$cores" -gt "$allowed" ]; then cores=$allowed; fi
  if [ "$domains" -lt 1 ]; then domains=1; fi
  if [ "$domains" -gt "$cores" ]; then domains=$cores; fi
  echo "$cores $domains"
}

# Sets RANKS_PER_NODE and THREADS. The nodes of a job are taken to be alike.
mdp_place() {
  local cores domains
  read -r cores domains < <(mdp_count_cores)
  case ${PLACEMENT:=numa} in
    numa) RANKS_PER_NODE=${RANKS_PER_NODE:-$domains} ;;
    core) RANKS_PER_NODE=${RANKS_PER_NODE:-$cores} ;;
    *)
      echo "PLACEMENT=$PLACEMENT is neither numa nor core" >&2
      return 2
      ;;
  esac
  THREADS=${THREADS:-$((cores / RANKS_PER_NODE > 0 ? cores / RANKS_PER_NODE : 1))}
}

# What a person reading the log next week wants to know.
mdp_describe() {
  : "${LAUNCH:?names how to start the program}"
  echo "job       ${SLURM_JOB_ID:-${PBS_JOBID:-none}} on ${SLURM_JOB_NODELIST:-$(hostname)}"
  echo "program   $(command -v "$MDP_PROGRAM" || echo "$MDP_PROGRAM, not found")"
  case $LAUNCH in
    srun | mpirun) echo "placement $RANKS_PER_NODE ranks a node, $THREADS threads each ($PLACEMENT), by $LAUNCH" ;;
    *) echo "placement by: $LAUNCH" ;;
  esac
  echo "command   $MDP_PROGRAM $*"
}

# mdp_launch ARG ...: run the program; returns its exit code.
mdp_launch() {
  MDP_PROGRAM=${MDP_PROGRAM:-moe-dist-prune}
  mdp_place || return
  mdp_describe "$@"
  # OMP_NUM_THREADS is what --threads defaults to; a LAUNCH of the user's own decides by itself.
  case $LAUNCH in srun | mpirun) export OMP_NUM_THREADS=$THREADS ;; esac
  case $LAUNCH in
    srun)
      # srun does not take cpus-per-task over from sbatch.
      srun --ntasks-per-node="$RANKS_PER_NODE" --ntasks="$((RANKS_PER_NODE * ${SLURM_JOB_NUM_NODES:-1}))" \
        --cpus-per-task="$THREADS" --cpu-bind=cores --hint=nomultithread --distribution=block:block --kill-on-bad-exit=1 \
        "$MDP_PROGRAM" "$@"
      ;;
    mpirun)
      if mpirun --version 2>&1 | grep -q 'Open MPI'; then
        mpirun --map-by "ppr:$RANKS_PER_NODE:node:pe=$THREADS" --bind-to core "$MDP_PROGRAM" "$@"
      else
        mpirun -ppn "$RANKS_PER_NODE" -bind-to "core:$THREADS" "$MDP_PROGRAM" "$@"
      fi
      ;;
    *)
      local launch
      read -r -a launch <<<"$LAUNCH"
      "${launch[@]}" "$MDP_PROGRAM" "$@"
      ;;
  esac
}
