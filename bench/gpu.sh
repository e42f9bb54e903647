#!/usr/bin/env bash
# What needs an NVIDIA GPU, in parts that each keep a time limit: bench/gpu.sh PART...
#   tests      the evaluator's kernels and its engine (75 s)
#   tune       conv tiles by measuring, into kernels/tiles.json (45 s)
#   profile    where an evaluation's time goes (40 s)
#   evaluator  masks per second of PreActResNet18 and their curves (200 s)
#   embedded   labels of trained victims in every precision, and their masks per second (75 s)
#   resnet50   masks per second of ResNet-50 (70 s)
#   ops        builds the extension with nvcc; message passing (120 s)
# No argument: all of them. A part that fails or runs late is cut short, never the next. Results go to bench/results, and to $OUT
# where that is set.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
paths=$PWD/build/gpu # the packages by their import names, so that nothing has to be installed
mkdir -p "$paths"
# The packages that kernels and engine need, below an onp that imports nothing: the machine need not have what the rest asks for.
mkdir -p "$paths/onp" && : >"$paths/onp/__init__.py"
for each in "$PWD"/onp/*; do [[ $each == */__init__.py ]] || ln -sfn "$each" "$paths/onp/"; done
ln -sfn "$PWD/kernels" "$paths/onp_kernels"
export PYTHONPATH=$paths:$PWD/tests PYTHONUNBUFFERED=1 TRITON_INTERPRET=0 TOKENIZERS_PARALLELISM=false
failed=()
within() { # SECONDS COMMAND...: its output cut to what can be read
  local seconds=$1 started=$SECONDS status
  shift
  printf '\n== %s (limit %d s)\n' "$*" "$seconds"
  timeout -k 5 "$seconds" "$@" 2>&1 | cut -c1-600 | awk "NR <= 150"
  status=${PIPESTATUS[0]}
  printf -- '-- status %d after %d s\n' "$status" $((SECONDS - started))
  ((status == 0)) || failed+=("$*")
}
run_tests() { # from NAME: pytest without conftest.py, which imports what the kernels do not need
  local workers=()
  python3 -c 'import xdist' 2>/dev/null && workers=(-n 14)
  OMP_NUM_THREADS=1 within "$1" python3 -m pytest -q -rf --tb=short -W ignore --noconftest -p helpers.random_numbers "${workers[@]}" \
    --maxfail=6 "${@:2}"
}

(($#)) || set -- tests tune profile evaluator embedded resnet50 ops
python3 -c 'import torch, triton; print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)' || exit 1
for part in "$@"; do
  case $part in
    tests) run_tests 75 tests/kernels/test_kernels_conv.py tests/kernels/test_kernels_head.py tests/engine/test_triton_backend.py -k 'not reference and not bucket and not refused and not missing and not cuda-float16' ;;
    tune) within 45 python3 -m onp_kernels.tiles --tune --seconds 30 ;;
    profile) within 40 python3 bench/profile_steps.py ;;
    evaluator) within 200 python3 bench/evaluator.py --device cuda --cases preact_resnet18 --rounds 10 --peer-rounds 10 ;;
    embedded)
      run_tests 35 tests/engine/test_agreement.py -k cuda
      within 40 python3 bench/evaluator.py --device cuda --no-curves --cases embedded --rounds 10 --peer-rounds 10
      ;;
    resnet50) within 70 python3 bench/evaluator.py --device cuda --no-curves --cases resnet50 --rounds 5 --peer-rounds 5 ;;
    ops)
      within 60 env ONP_CUDA=ON python3 -m pip install . --no-build-isolation --no-deps -q --target "$PWD/build/installed"
      PYTHONPATH=$PWD/build/installed:$PYTHONPATH within 60 python3 bench/message_passing.py --device cuda --nodes 512 4800 100000 \
        --features 64 --copied 4800 --jobs sum mean max attention --rounds 3
      ;;
    *) echo "there is no part $part" >&2 ;;
  esac
  [[ -n ${OUT:-} ]] && cp -f bench/results/*cuda*.json kernels/tiles.json "$OUT"/ 2>/dev/null
done
printf '\n== %d s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
