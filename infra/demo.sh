#!/usr/bin/env bash
# The whole chain on the drawn world: environment, images, detector, shards, both stages, evaluation, report.
#   bash infra/demo.sh [ROOT]      artifacts go below ROOT (default: fo1_data); a second call finds all of it done
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started=$SECONDS
root=${1:-fo1_data}

bash infra/setup.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Compile imported packages once and keep the result: every worker process imports torch, 10 CPU seconds apart.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/python -m dataset_builders.drawn_world "$root/datasets/drawn" --train 2400 --val 200 --seed 0
.venv/bin/fo1 run stage2 --root "$root"
echo "demo: $((SECONDS - started)) s"
