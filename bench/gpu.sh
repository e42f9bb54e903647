#!/usr/bin/env bash
# The GPU half of the tests and benchmarks, on a machine with an NVIDIA GPU and nvcc: builds, tests, then measures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU here"'
ONP_CUDA=ON pip install . --no-build-isolation --no-deps
python -c 'import onp_native; assert onp_native.with_cuda, "onp_native was built without CUDA"'
pytest -q tests/test_ops.py -k cuda
python bench/message_passing.py --device cuda --out bench/results/message_passing_cuda.json "$@"
