#!/usr/bin/env bash
# What does a GPU say? Everything that is measured on one, in one call of under eight minutes; see README.md.
#
#     bash benchmarks/on_gpu.sh OUT [WHEELS [CLIPA]] [-- arguments of gpu/run.py]
#
# OUT: folder of the results. WHEELS: folder with the wheels of the packages that the machine lacks; - or none: it lacks
# none. CLIPA: folder clipa_jax of a checkout of UCSC-VLAA/CLIPA; - or none: its parts fail and say so.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
own=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do own+=("$1"); shift; done
[ $# -gt 0 ] && shift
out=${own[0]:?the folder of the results is missing} wheels=${own[1]:--} clipa=${own[2]:--}
mkdir -p "$out"
nvidia-smi 2>&1 | tee "$out/nvidia-smi.txt" | head -15 || true
if [ "$wheels" != - ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    # Without their needs: jax, numpy and torch stay those of the machine.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
arguments=(--out "$out")
[ "$clipa" = - ] || arguments+=(--clipa "$clipa")
"$python" "$root/benchmarks/gpu/run.py" "${arguments[@]}" "$@"
