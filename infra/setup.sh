#!/usr/bin/env bash
# Create (or bring up to date) the project's environment in .venv. Idempotent: a second call returns at once.
#   bash infra/setup.sh            PYTHON=python3.12 bash infra/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $python is older than Python 3.11; name a newer one: PYTHON=python3.12 bash infra/setup.sh" >&2
    exit 1
}
stamp=.venv/.stamp
wanted=$(cat pyproject.toml infra/constraints.txt infra/setup.sh | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

command -v uv >/dev/null || "$python" -m pip install --quiet --disable-pip-version-check uv
uv=$(command -v uv || echo "$python -m uv")
[ -x .venv/bin/python ] || $uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
echo "setup: installing into .venv (about a minute; PyTorch is the largest part)"
$uv pip install --quiet --python .venv/bin/python --constraint infra/constraints.txt --editable '.[cluster,dev]'
echo "$wanted" >"$stamp"
