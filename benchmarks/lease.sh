#!/usr/bin/env bash
# Trains the next runs of the study on a machine that is lent for minutes, and packs what is finished.
#
#     bash benchmarks/lease.sh MINUTES TARGET [WORKERS]      (PROFILE=smoke tries it)
#
# It needs no network: torch must be installed, everything else is taken from wheels/ if that is there
# (pip download -d wheels -r <(pip freeze) makes it). It stops by itself a minute before MINUTES are
# over. TARGET then holds archives of at most 16 MiB, with the finished runs and the checkpoints of the
# others; `python notebooks/run.py --profile study --import TARGET/*.tar` adds them to the record.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
minutes="${1:?minutes}" target="${2:?target folder}" workers="${3:-14}"
began=$(date +%s)

python="$(command -v python3)"
"$python" -c 'import torch' || { echo "lease: $python has no torch" >&2; exit 1; }
if ! "$python" -c 'import monai, nilearn, pandas, safetensors, omegaconf, pywt' 2>/dev/null; then
  [ -d wheels ] || { echo "lease: packages are missing, and there is no wheels/ to take them from" >&2; exit 1; }
  "$python" -m venv --system-site-packages runs/lease-venv
  python="runs/lease-venv/bin/python"
  # torch is there already: what depends on it must not bring another.
  "$python" -m pip install -q --no-index --no-deps wheels/*.whl
fi

# What is packed early is not lost when the lease ends early: every minute the finished runs are packed.
pack() { "$python" notebooks/study.py pack "$target" --parts 16 || true; }
export OMP_NUM_THREADS=1
left=$(( minutes * 60 - 60 - ($(date +%s) - began) ))
timeout --signal=INT --kill-after=30 "$left" "$python" notebooks/study.py --profile "${PROFILE:-study}" run --workers "$workers" &
work=$!
trap 'kill -INT "$work" 2>/dev/null || true; wait "$work" || true; pack' EXIT
while kill -0 "$work" 2>/dev/null; do
  sleep 60 & wait -n "$work" $! || true
  pack >/dev/null
done
