#!/usr/bin/env bash
# A training run on GPUs under Slurm, or an index or vectors made by all of them, resumed after preemption, requeue and
# time limit; or a server on the GPUs of one node. From the top of the checkout:
#
#   sbatch --gpus-per-node=8 launch/slurm.sh CONFIG --output DIR [--train.steps 100 ...]
#   sbatch --gpus-per-node=8 launch/slurm.sh index MODEL --input F.jsonl --output DIR [--kv int8 ...]
#   sbatch --gpus-per-node=8 launch/slurm.sh encode MODEL --input F.jsonl --output V.npy
#   sbatch --gpus-per-node=1 launch/slurm.sh serve MODEL --host 0.0.0.0 --api-keys FILE [--index NAME=DIR ...]
#   launch/slurm.sh --dry-run CONFIG --output DIR          (prints what would run; needs no Slurm)
#
# DIR and the data must be on a file system that all nodes share. The environment is $GRIT_VENV (.venv of the checkout).
# At most $GRIT_RETRIES (10) requeues after the time limit; a preempted job is requeued by Slurm itself.
#SBATCH --job-name=grit
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

fail() { echo "slurm.sh: $1" >&2; exit 2; }

dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true; shift; fi
[ $# -ge 1 ] || fail "usage: sbatch launch/slurm.sh CONFIG --output DIR [OVERRIDES], or index|encode MODEL --input F --output OUT, or serve MODEL"
verb=train
case "$1" in index | encode | serve) verb=$1; shift ;; esac
case "$verb $* " in
  "serve "* | *" --output "* | *" --output="*) ;;
  *) fail "--output DIR is missing: a folder that all nodes share" ;;
esac

# Slurm runs a copy of this file, so the checkout is where sbatch was called.
code=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
[ -d "$code/grit_jax" ] || fail "$code is not the checkout; call sbatch from its top"
$dry_run || [ -n "${SLURM_JOB_ID:-}" ] || fail "no Slurm job here; call it with sbatch"
grit=${GRIT_VENV:-$code/.venv}/bin/grit
$dry_run || [ -x "$grit" ] || fail "$grit is not there; make it (python3 -m venv .venv; pip install -e '.[cuda]'), or set GRIT_VENV"

# Left to choose, JAX takes the CPU with a warning when the GPUs cannot be used (an old driver); named, it fails.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}

nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-8}
# One process a GPU, each seeing all GPUs of its node: so jax.distributed reads Slurm's variables.
layout=(--nodes="$nodes" --ntasks="$((nodes * gpus))" --ntasks-per-node="$gpus")
if [ "$verb" = serve ]; then
  [ "$nodes" -eq 1 ] || fail "a server runs on one node, and the job has $nodes"
  layout=(--nodes=1 --ntasks=1) # one process has all GPUs
fi
step=(srun "${layout[@]}" --gpu-bind=none --cpu-bind=none --kill-on-bad-exit=1 --unbuffered "$grit" "$verb" "$@")

if $dry_run; then
  printf '%q ' "${step[@]}" | sed 's/ $//'
  echo
  exit 0
fi

out_of_time=false
# To the tasks themselves: srun, told to end, kills them at once.
trap 'out_of_time=true; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
"${step[@]}" &
pid=$!
status=0
wait "$pid" || status=$?
if $out_of_time; then # the signal has ended the waiting, not the run
  status=0
  wait "$pid" || status=$?
fi

# A server that has answered what it had accepted ends with status 0.
if $out_of_time && { [ "$status" -ne 0 ] || [ "$verb" = serve ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt "${GRIT_RETRIES:-10}" ]; then
  echo "slurm.sh: out of time; requeued, and on from what is saved"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
