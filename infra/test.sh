#!/usr/bin/env bash
# Every check of the project: lint, types, tests. Creates the environment itself.
#   bash infra/test.sh                  all but the long chaos runs
#   bash infra/test.sh -m chaos         the chaos runs; any arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash infra/setup.sh

# One thread a process: with two of them on two cores everything below is slower, not faster.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Compile imported packages once and keep the result: every worker process imports torch, 10 CPU seconds apart.
unset PYTHONDONTWRITEBYTECODE
export RAY_AUTH_MODE=disabled RAY_DISABLE_USAGE_STATS=1 RAY_DEDUP_LOGS=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1

if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    # Two processes, a file at a time; in order, for the longest files come before the end.
    set -- -m 'not chaos' -n 2 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest --durations=15 "$@"
