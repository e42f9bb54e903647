#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU and nvcc, in under eight minutes: builds, tests the CUDA and Triton halves, chooses the
# conv tiles by measuring, then takes the figures and writes bench/results/*.json. What runs late is cut short, never the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
budget=${ONP_GPU_SECONDS:-460}
step() { printf '\n== %s (after %d s)\n' "$1" "$SECONDS"; }
within() { # SHARE COMMAND...: at most SHARE per cent of the seconds that are left
  local left=$(((budget - SECONDS) * $1 / 100))
  shift
  timeout "$((left > 1 ? left : 1))" "$@" || echo "stopped with status $? after $SECONDS s: $*"
}

step "build"
python -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU here"'
ONP_CUDA=ON pip install . --no-build-isolation --no-deps
python -c 'import onp_native; assert onp_native.with_cuda, "onp_native was built without CUDA"'

step "message passing"
pytest -q tests/test_ops.py -k cuda
rm -f bench/results/message_passing_cuda.json # rows of another machine are not mixed in
within 25 python bench/message_passing.py --device cuda --nodes 1 512 4800 100000 --features 64 --rounds 5 \
  --out bench/results/message_passing_cuda.json

step "tests of the evaluator's kernels"
export TRITON_INTERPRET=0 # tests/conftest.py chooses the interpreter otherwise
workers=$(python -c 'import xdist' 2>/dev/null && echo "-n 8" || true) # most of their time goes to compiling kernels
pytest -q $workers tests/test_kernels_conv.py tests/test_kernels_head.py
pytest -q tests/test_cuda_engine.py -k gpu

step "tiles"
within 35 python -m onp_kernels.tiles --tune
python -c 'import onp_kernels.tiles as t, shutil; t.TUNED.exists() and shutil.copy(t.TUNED, "bench/results/tiles.json")'

step "masks per second"
within 75 python bench/evaluator.py --device cuda --no-curves
within 100 python bench/evaluator.py --device cuda --cases
step "done"
