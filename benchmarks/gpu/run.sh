#!/bin/sh
# Everything that needs an accelerator, in pieces that resume: see README.md. Works from a checkout, with or without the package installed.
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
wheels=$here/carried/wheels
site=${TMPDIR:-/tmp}/vsparse-gpu-site
PYTHON=${PYTHON:-python3}
if [ -d "$wheels" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 3
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
PYTHONPATH=$root/toolchain${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 exec "$PYTHON" "$here/run.py" "$@"
