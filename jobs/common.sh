# common.sh - sourced by the job scripts: places ranks and threads on nodes, says what runs where, stages the model, starts the program.
# shellcheck shell=bash
#
# A job script ends in `mdp_main ARG ...`. The arguments are those of the program, and three of its own (doc/jobs.md):
#   --stage DIR     copy the model of --model to DIR on every node first, and remove the copy at the end
#   --each A,B,C    once for each value, which stands for {} in the arguments; element n of a job array takes the n-th value
#   --then          ends one command line of the program and begins the next; the first that fails ends the job
# Set by the user, all optional:
#   MDP_PROGRAM     the program                                                       (moe-dist-prune)
#   LAUNCH          srun, mpirun, or a whole command such as "mpirun -n 2", used as it stands
#   PLACEMENT       numa: one rank a NUMA domain, threads on its cores; core: one rank a core    (numa)
#   RANKS_PER_NODE, THREADS   override what PLACEMENT gives
#   MDP_ARGUMENTS   the arguments, divided at blanks, where the batch system passes none to a script
#   MDP_REQUEUE     what to do with a job whose command was stopped and can go on: a command line, or nothing    (scontrol requeue ID)
#   MDP_REQUEUES    how often at most                                                                            (20)
#
# Arrays that may be empty are expanded as ${a[@]+"${a[@]}"}: bash before 4.4 takes them for unset.

# ---- What the job has ----------------------------------------------------------------------------------------------------------

# Processors that this process may use; nproc alone would count OMP_NUM_THREADS, which many a site sets to 1.
mdp_processors() {
  env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc
}

# Physical cores that this process may use, and NUMA domains that they lie in, as "cores domains".
mdp_count_cores() {
  local allowed cores domains
  allowed=$(mdp_processors)
  cores=$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  domains=$(lscpu -p=NODE 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  if [ "$cores" -lt 1 ] || [ "$cores" -gt "$allowed" ]; then cores=$allowed; fi
  if [ "$domains" -lt 1 ]; then domains=1; fi
  if [ "$domains" -gt "$cores" ]; then domains=$cores; fi
  echo "$cores $domains"
}

# The file in which PBS or LSF lists the hosts of the job, a line for each slot; nothing elsewhere.
mdp_host_file() {
  echo "${PBS_NODEFILE:-${LSB_DJOB_HOSTFILE:-}}"
}

mdp_count_nodes() {
  local hosts
  hosts=$(mdp_host_file)
  if [ -n "${SLURM_JOB_NUM_NODES:-}" ]; then
    echo "$SLURM_JOB_NUM_NODES"
  elif [ -r "$hosts" ]; then
    sort -u "$hosts" | wc -l
  else
    echo 1
  fi
}

# Sets RANKS_PER_NODE and THREADS. The nodes of a job are taken to be alike.
mdp_place() {
  local cores domains
  read -r cores domains < <(mdp_count_cores)
  # Containers without /sys show no topology: one domain, and the processors that the shell may use.
  [ "${cores:-0}" -gt 0 ] || cores=$(mdp_processors)
  [ "${domains:-0}" -gt 0 ] || domains=1
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

# ---- Starting programs ---------------------------------------------------------------------------------------------------------

mdp_is_open_mpi() {
  mpirun --version 2>&1 | grep 'Open MPI' >/dev/null # not -q, which would end a writer with more to say: a failure, with pipefail
}

# Hydra before 4.1 (MPICH) now and then ends with 0 for ranks that it passed a signal on to, whatever they ended with (MPICH's pull request 5930).
mdp_launcher_loses_codes() {
  local launcher
  # shellcheck disable=SC2153 # LAUNCH is the job script's
  read -r launcher _ <<<"$LAUNCH"
  case ${launcher##*/} in mpirun* | mpiexec*) ;; *) return 1 ;; esac
  "$launcher" --version 2>&1 | awk '/^HYDRA/ { hydra = 1 } /Version:/ { split($2, part, ".") }
    END { exit !(hydra && (part[1] < 4 || (part[1] == 4 && part[2] < 1))) }'
}

# mdp_start RANKS_PER_NODE THREADS PROGRAM ARG ...: on all nodes; a LAUNCH of the user's own decides the numbers by itself.
mdp_start() {
  local ranks=$1 threads=$2 exec=${exec:-} hosts launch
  shift 2
  # shellcheck disable=SC2153 # LAUNCH is the job script's
  case $LAUNCH in
    srun)
      # srun does not take cpus-per-task over from sbatch; --hint=nomultithread excludes --cpu-bind.
      $exec srun --ntasks-per-node="$ranks" --ntasks="$((ranks * $(mdp_count_nodes)))" --cpus-per-task="$threads" --threads-per-core=1 \
        --cpu-bind=cores --distribution=block:block --kill-on-bad-exit=1 "$@"
      ;;
    mpirun)
      if mdp_is_open_mpi; then
        launch=(mpirun --map-by "ppr:$ranks:node:pe=$threads" --bind-to core)
        hosts=$(mdp_host_file)
        # Open MPI built without the batch system has to be told the hosts.
        if [ -n "$hosts" ] && ! ompi_info --parsable 2>/dev/null | grep -E '^mca:plm:(tm|lsf):' >/dev/null; then launch+=(--hostfile "$hosts"); fi
      else
        launch=(mpirun -n "$((ranks * $(mdp_count_nodes)))" -ppn "$ranks" -bind-to "core:$threads")
      fi
      $exec "${launch[@]}" "$@"
      ;;
    *)
      read -r -a launch <<<"$LAUNCH"
      $exec "${launch[@]}" "$@"
      ;;
  esac
}

# mdp_start in the background, so that this shell can take signals meanwhile; the background process becomes the launcher. 75 where the
# job was told to stop before the program could listen.
mdp_start_and_wait() {
  local code=0 again
  [ -z "$MDP_STOP" ] || return 75
  (
    exec="exec"
    mdp_start "$@"
  ) &
  MDP_CHILD=$!
  if [ -n "$MDP_STOP" ]; then kill -USR1 "$MDP_CHILD" 2>/dev/null || true; fi # it came before there was a child to pass it on to
  MDP_SIGNALLED=
  wait "$MDP_CHILD" || code=$?
  # `wait` ends when a signal is trapped, before the program has ended.
  while [ -n "$MDP_SIGNALLED" ]; do
    MDP_SIGNALLED=
    again=0
    wait "$MDP_CHILD" || again=$?
    [ "$again" -eq 127 ] || code=$again # 127: it had ended already
  done
  MDP_CHILD=
  # The program answers SIGUSR1 by 75; what has died of it was still starting.
  if [ -n "$MDP_STOP" ] && [ "$code" -eq "$((128 + $(kill -l USR1)))" ]; then code=75; fi
  return "$code"
}

# The batch system says some minutes ahead that the time is over: SIGUSR1 to this shell, which passes it on to the launcher. Between two
# programs, or while the model is staged, it is remembered: the next program does not begin.
mdp_pass_on() {
  MDP_SIGNALLED=1
  MDP_STOP=1
  echo "signal    SIGUSR1 at $(date '+%F %T'): saving and stopping"
  if [ -n "${MDP_CHILD:-}" ]; then kill -USR1 "$MDP_CHILD" 2>/dev/null || true; fi
}

# How often this job was put back into the queue.
mdp_restarts() {
  echo "${SLURM_RESTART_COUNT:-${MDP_RESTARTS:-0}}"
}

# Holds the command lines of the job that are done, a line each, from the first until the job ends.
mdp_done_file() {
  echo ".moe-dist-prune.$(mdp_job_key).done"
}

# mdp_was_done N COMMAND: whether the N-th command line was done before the job was put back into the queue. Only what this user wrote
# counts, and only the same command line: numbers of jobs come again.
mdp_was_done() {
  local file
  file=$(mdp_done_file)
  [ "$(mdp_restarts)" -gt 0 ] && [ -f "$file" ] && [ ! -L "$file" ] && [ -O "$file" ] && [ "$(sed -n "$1p" "$file")" = "$2" ]
}

# mdp_note_done N COMMAND: written anew beside it and put in its place, so that it is whole, and ours whatever stood there.
mdp_note_done() {
  local file part
  [ -n "$(mdp_job_key)" ] || return 0
  file=$(mdp_done_file)
  part=$(mktemp "$file.XXXXXXXX") || return 0 # at worst the command is repeated
  if [ "$1" -gt 1 ]; then head -n "$(($1 - 1))" "$file" >"$part" 2>/dev/null || true; fi
  if ! { printf '%s\n' "$2" >>"$part" && mv -fT "$part" "$file"; }; then rm -f "$part"; fi
}

# Commands that take resume points; without a name it is run.
mdp_can_resume() {
  local word
  for word in "$@"; do if [ "$word" = --resume ]; then return 1; fi; done
  case ${1:-} in run | observe | merge | refit | apply | eval | export | --*) return 0 ;; *) return 1 ;; esac
}

# After exit code 75, when all is saved: back into the queue.
mdp_requeue() {
  if [ "$(mdp_restarts)" -ge "${MDP_REQUEUES:-20}" ]; then
    echo "requeue   not again: $(mdp_restarts) times were enough (MDP_REQUEUES)"
    return 1
  fi
  if [ -n "${MDP_REQUEUE:-}" ]; then
    echo "requeue   $MDP_REQUEUE"
    bash -c "$MDP_REQUEUE"
  elif [ -n "${SLURM_JOB_ID:-}" ] && command -v scontrol >/dev/null; then
    echo "requeue   scontrol requeue $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "requeue   start this job again with --resume in its arguments"
    return 1
  fi
}

# ---- Staging -------------------------------------------------------------------------------------------------------------------

# mdp_list_model MODEL ACTION ...: find on the files of a model, relative to the folder they lie in. Links are followed (a Hugging Face
# cache is made of them), hidden entries are left (.git may hold the weights again).
mdp_list_model() {
  local model=$1
  shift
  if [ -d "$model" ]; then
    cd "$model" && find -L . -mindepth 1 -name '.*' -prune -o -type f "$@"
  else
    cd "$(dirname "$model")" && find -L "$(basename "$model")" -type f "$@"
  fi
}

# mdp_copy_model MODEL FOLDER: runs on the nodes, perhaps more than once on each: who makes FOLDER copies. Its name has random letters
# that no other user knows, so one of that name that is ours alone was made by this job; any other is not to be trusted.
mdp_copy_model() {
  local model=$1 folder=$2 to=$2 need free
  mkdir -p "$(dirname "$folder")" || return 73
  if ! mkdir -m 700 "$folder" 2>/dev/null; then
    if [ -d "$folder" ] && [ ! -L "$folder" ] && [ -O "$folder" ] && [[ $(stat -c %a "$folder") == *700 ]]; then return 0; fi
    echo "--stage: cannot make $folder on $(hostname), or it is another's" >&2
    return 73
  fi
  need=$(mdp_list_model "$model" -printf '%s\n' | awk '{ bytes += $1 } END { printf "%.0f", bytes / 1024 }')
  free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
  if [ "$need" -ge "$free" ]; then
    echo "--stage: $model needs $need KiB, $folder on $(hostname) has $free KiB free; stage elsewhere or leave --stage out" >&2
    return 73
  fi
  if [ -d "$model" ]; then
    to=$folder/$(basename "$model")
    mkdir "$to" && cd "$model" || return 74
  else
    cd "$(dirname "$model")" || return 74
  fi
  mdp_list_model "$model" -print0 | xargs -0 -r -n 1 -P 8 cp -L --preserve=timestamps --parents -t "$to" || return 74
  # Links to nothing stay so, for the program to name them.
  if [ -d "$model" ]; then
    find -L . -mindepth 1 -name '.*' -prune -o -type l -print0 | xargs -0 -r cp -P --parents -t "$to" || return 74
  fi
}

# mdp_stage MODEL: sets MDP_STAGED, the folder of the copy on each node, unless MODEL lies there already.
mdp_stage() {
  local model key started=$SECONDS
  model=$(realpath -s "$1")
  key=$(mdp_job_key)
  if [ "$model" = "${MDP_STAGED_MODEL:-}" ]; then return 0; fi
  mdp_unstage
  if [ ! -e "$model" ]; then
    echo "--stage: there is no $model" >&2
    return 65
  fi
  MDP_STAGED=$(mktemp -u -d "$MDP_STAGE/moe-dist-prune.${key:+$key.}XXXXXXXXXX") || return 73
  mdp_start 1 1 bash -c "set -o pipefail; $(declare -f mdp_list_model mdp_copy_model); mdp_copy_model \"\$@\"" mdp_copy_model "$model" "$MDP_STAGED" || return
  MDP_STAGED_MODEL=$model
  echo "staged    $model to $MDP_STAGED on each node in $((SECONDS - started)) s"
}

# Removes the copies. A job that is killed may leave them: DIR had better be a folder that the batch system clears.
mdp_unstage() {
  if [ -z "${MDP_STAGED:-}" ]; then return 0; fi
  # shellcheck disable=SC2016 # $1 is that shell's
  mdp_start 1 1 bash -c 'if [ -O "$1" ]; then rm -rf "$1"; fi' mdp_unstage "$MDP_STAGED" ||
    echo "--stage: $MDP_STAGED is left on some node" >&2
  MDP_STAGED=
  MDP_STAGED_MODEL=
}

# ---- The job -------------------------------------------------------------------------------------------------------------------

mdp_job_id() {
  local id=${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-none}}}
  echo "${id//[^A-Za-z0-9._-]/_}"
}

# Element of a job array, or nothing. LSF says 0 where there is no array; elsewhere 0 is an element.
mdp_array_index() {
  local index=${LSB_JOBINDEX:-}
  if [ "$index" = 0 ]; then index=; fi
  echo "${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-$index}}}"
}

# Names what belongs to this job alone, or nothing outside a batch system. The elements of an array may have one id (LSF), and clusters
# that share a file system the same ids.
mdp_job_key() {
  local id index cluster=${SLURM_CLUSTER_NAME:-${LSB_CLUSTER_NAME:-}}
  id=$(mdp_job_id)
  index=$(mdp_array_index)
  if [ "$id" = none ]; then return 0; fi
  echo "${cluster:+${cluster//[^A-Za-z0-9._-]/_}.}$id${index:+.${index//[^A-Za-z0-9._-]/_}}"
}

# Sets MDP_STAGE, MDP_VALUES (those that are this job's) and MDP_WORDS (the program's arguments and --then).
mdp_read_arguments() {
  local index name model='' dry=''
  MDP_STAGE=
  MDP_VALUES=()
  MDP_WORDS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --stage=* | --each=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --stage | --each)
        if [ -z "${2:-}" ]; then
          echo "$1: its value is missing" >&2
          return 2
        fi
        if [ "$1" = --stage ]; then MDP_STAGE=$2; else IFS=, read -r -a MDP_VALUES <<<"$2"; fi
        shift 2
        ;;
      *)
        case $1 in
          --model | --model=*) model=1 ;;
          --dry-run) dry=1 ;;
        esac
        MDP_WORDS+=("$1")
        shift
        ;;
    esac
  done
  # '$TMPDIR' is known only in the job.
  if [[ $MDP_STAGE =~ ^\$([A-Za-z_][A-Za-z_0-9]*)(.*)$ ]]; then
    name=${BASH_REMATCH[1]}
    MDP_STAGE=${!name:-}${BASH_REMATCH[2]}
    if [ -z "${!name:-}" ]; then
      echo "--stage: \$$name is not set in this job" >&2
      return 2
    fi
  fi
  if [ -n "$MDP_STAGE" ] && [ -z "$model" ]; then
    echo "--stage: copies the model of --model, which is not given" >&2
    return 2
  fi
  if [ -n "$dry" ]; then MDP_STAGE=; fi # reads headers only
  if [ -n "$MDP_STAGE" ]; then MDP_STAGE=$(realpath -m "$MDP_STAGE"); fi
  index=$(mdp_array_index)
  if [ "${#MDP_VALUES[@]}" -eq 0 ] && [ -n "$index" ]; then
    echo "element $index of a job array, but --each names no values: all elements would do the same" >&2
    return 2
  elif [ -n "$index" ]; then
    if [ "$index" -lt 1 ] || [ "$index" -gt "${#MDP_VALUES[@]}" ]; then
      echo "element $index of the job array: --each has values 1 to ${#MDP_VALUES[@]}" >&2
      return 2
    fi
    MDP_VALUES=("${MDP_VALUES[index - 1]}")
  fi
}

# The stripes of the folder that the output goes to, where there is Lustre: one stripe is slow for a large model.h5.
mdp_describe_stripes() {
  local previous='' word folder
  command -v lfs >/dev/null || return 0
  for word in ${MDP_WORDS[@]+"${MDP_WORDS[@]}"}; do
    if [ "$previous" = --out ]; then
      folder=$(dirname "$word")
      echo "stripes   $(lfs getstripe -d "$folder" 2>/dev/null | tr -s ' \n' ' ') of $folder"
    fi
    previous=$word
  done
}

# What a person reading the log next week wants to know.
mdp_describe() {
  local hosts
  echo "job       $(mdp_job_id)$(mdp_array_index | sed -n 's/^./, element &/p'), begun $(date '+%F %T')"
  hosts=$(mdp_host_file)
  if [ -r "$hosts" ]; then hosts=$(sort -u "$hosts" | paste -sd ' '); fi
  echo "nodes     $(mdp_count_nodes): ${SLURM_JOB_NODELIST:-${hosts:-$(hostname)}}"
  echo "program   $(command -v "$MDP_PROGRAM" || echo "$MDP_PROGRAM, not found")"
  echo "modules   ${LOADEDMODULES:-none}"
  case $LAUNCH in
    srun | mpirun) echo "placement $RANKS_PER_NODE ranks a node, $THREADS threads each ($PLACEMENT), by $LAUNCH" ;;
    *) echo "placement by: $LAUNCH" ;;
  esac
  mdp_describe_stripes
}

# mdp_run_step ARG ...: one command line of the program; returns its exit code.
mdp_run_step() {
  local words=() previous='' word model asked code=0 started=$SECONDS
  asked=$(printf '%q ' "$@")
  MDP_STEP=$((MDP_STEP + 1))
  if mdp_was_done "$MDP_STEP" "$asked"; then
    echo "command   $MDP_STEP was done before the job was put back into the queue"
    return 0
  fi
  for word in "$@"; do
    model=
    if [ "$previous" = --model ]; then model=$word; fi
    if [[ $word == --model=* ]]; then model=${word#--model=}; fi
    if [ -n "$model" ] && [ -n "$MDP_STAGE" ]; then
      mdp_stage "$model" || return
      word=${word%"$model"}$MDP_STAGED/$(basename "$MDP_STAGED_MODEL")
    fi
    words+=("$word")
    previous=$word
  done
  # A job that was put back into the queue begins again: its commands go on where they were stopped.
  if [ "$(mdp_restarts)" -gt 0 ] && mdp_can_resume ${words[@]+"${words[@]}"}; then words+=(--resume); fi
  echo "command   $(printf '%q ' "$MDP_PROGRAM" ${words[@]+"${words[@]}"})"
  mdp_start_and_wait "$RANKS_PER_NODE" "$THREADS" "$MDP_PROGRAM" ${words[@]+"${words[@]}"} || code=$?
  # It may have been stopped: to go on from what is whole takes no time.
  if [ -n "$MDP_STOP" ] && [ "$code" -eq 0 ] && mdp_can_resume "$@" && mdp_launcher_loses_codes; then code=75; fi
  echo "ended     code $code after $((SECONDS - started)) s"
  if [ "$code" -eq 0 ]; then mdp_note_done "$MDP_STEP" "$asked"; fi
  return "$code"
}

# mdp_run_steps [VALUE]: the command lines one after another, VALUE in place of {}.
mdp_run_steps() {
  local step=() word
  for word in ${MDP_WORDS[@]+"${MDP_WORDS[@]}"} --then; do
    if [ "$word" = --then ]; then
      mdp_run_step ${step[@]+"${step[@]}"} || return
      step=()
      continue
    fi
    if [ $# -gt 0 ]; then word=${word//"{}"/"$1"}; fi
    step+=("$word")
  done
}

# mdp_main ARG ...: the job; returns the exit code of the program that failed, else 0.
mdp_main() {
  local code=0
  MDP_CHILD=
  MDP_STOP=
  MDP_STEP=0
  trap mdp_pass_on USR1
  # One that a job of this number left long ago is not this job's.
  if [ "$(mdp_restarts)" -eq 0 ]; then rm -f "$(mdp_done_file)"; fi
  mdp_main_once "$@" || code=$?
  if [ "$code" -ne 75 ] || ! mdp_requeue; then rm -f "$(mdp_done_file)"; fi
  return "$code"
}

mdp_main_once() {
  local value
  if [ $# -eq 0 ] && [ -n "${MDP_ARGUMENTS:-}" ]; then
    read -r -d '' -a MDP_WORDS <<<"$MDP_ARGUMENTS" || true
    set -- "${MDP_WORDS[@]}"
  fi
  : "${LAUNCH:?names how to start the program}"
  MDP_PROGRAM=${MDP_PROGRAM:-moe-dist-prune}
  mdp_read_arguments "$@" || return
  mdp_place || return
  mdp_describe
  # OMP_NUM_THREADS is what --threads defaults to; a LAUNCH of the user's own decides by itself.
  case $LAUNCH in srun | mpirun) export OMP_NUM_THREADS=$THREADS ;; esac
  trap mdp_unstage EXIT
  if [ "${#MDP_VALUES[@]}" -eq 0 ]; then
    mdp_run_steps
    return
  fi
  for value in "${MDP_VALUES[@]}"; do
    mdp_run_steps "$value" || return
  done
}
