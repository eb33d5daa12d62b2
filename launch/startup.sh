#!/usr/bin/env bash
# Runs as root on every worker at every boot (tpu.py hands it to Google as the startup script).
# --dry-run prints the commands, one a line, and runs nothing.
set -euo pipefail

dry_run=false
case "${1:-}" in
  "") ;;
  --dry-run) dry_run=true ;;
  *) echo "startup.sh: unknown argument $1" >&2; exit 2 ;;
esac

run() {
  if $dry_run; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# Transparent huge pages: JAX asks for them, TPU start and stop are much slower without (jax: jax/_src/cloud_tpu_init.py).
run sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'
# No upgrade in the middle of a run: it takes the CPU, and may restart services.
run systemctl disable --now --quiet unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer
