#!/usr/bin/env bash
# All checks that need a CUDA device, in one call of nine minutes at the most, the most valuable first; what does not fit is left.
# Results go to $OUT (by default benchmarks/results/gpu) as they come, so that an interrupted run keeps what it has.
#
#   bash benchmarks/gpu_check.sh
#
# Data sets come from $CONVOLT_DATA, by default from the ignored folder .carry/data, where there is one.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
if [ -z "${CONVOLT_DATA:-}" ] && [ -d .carry/data ]; then export CONVOLT_DATA="$PWD/.carry/data"; fi
OUT="${OUT:-benchmarks/results/gpu}"
mkdir -p "$OUT"
SUITE="$OUT/suite_cuda_$(date +%F).json"

END=$((SECONDS + 525))

part() {  # part NAME SECONDS COMMAND…: in no more seconds than are left of the whole
  local name="$1" limit="$2" left=$((END - SECONDS))
  shift 2
  if [ "$left" -lt 15 ]; then
    echo "== $name: no time left"
    return
  fi
  echo "== $name"
  timeout "$((limit < left ? limit : left))" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 40
  echo "== $name: exit ${PIPESTATUS[0]}"
}

suite() {  # suite NAME SECONDS WORKLOAD PRECISION BATCH IMAGES PEERS…: plain PyTorch runs in Convolt's own environment where it has none
  local name="$1" limit="$2" workload="$3" precision="$4" batch="$5" images="$6"
  shift 6
  part "$name" "$limit" python3 benchmarks/suite.py --device cuda --workloads "$workload" --precisions "$precision" --batches "$batch" \
    --images "$images" --rounds 1 --budget 3 --limit $((limit - 20)) --minutes 8 --output "$SUITE" --peers "$@"
}

tests() {  # tests SECONDS: each file of tests/gpu in a process of its own, all at once, for most of their time is compiling on the host
  local limit="$1" file name
  echo "== tests"
  for file in tests/gpu/test_*.py; do
    name="$(basename "$file" .py)"
    OMP_NUM_THREADS=2 timeout "$limit" python3 -m pytest "$file" -q -m gpu -p no:cacheprovider -o filterwarnings=default --tb=short \
      --durations=5 > "$OUT/$name.log" 2>&1 &
  done
  wait
  for file in "$OUT"/test_*.log; do
    echo "-- $(basename "$file" .log): $(tail -n 1 "$file")"
    grep -E "^(FAILED|ERROR|E  )" "$file" | head -n 12
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv | tee "$OUT/machine.log"
tests 130
suite cnn_bf16 70 cnn bfloat16 512 131072 convolt "pytorch tuned" "torch.compile max-autotune"
suite resnet18 70 resnet18 bfloat16 512 51200 convolt "pytorch tuned" "torch.compile max-autotune"
if [ -n "${CONVOLT_DATA:-}" ]; then  # eight epochs with its recipe, to 94%
  part speednet 50 python3 benchmarks/speednet.py --device cuda --target 0.94 --output "$OUT/speednet_cuda_$(date +%F).json"
fi
suite predict_resnet50 45 resnet50_predict bfloat16 64 1024 convolt "pytorch tuned"
suite predict_vgg16 45 vgg16_predict bfloat16 64 1024 convolt "pytorch tuned"
part executions 30 python3 benchmarks/executions.py --device cuda --rounds 1 --output "$OUT/executions_cuda_$(date +%F).json"
part kernels 45 python3 benchmarks/kernels.py --device cuda
part augmentation 30 python3 benchmarks/augmentation.py --device cuda --seconds 1 --sides convolt "convolt bfloat16" "convolt flip and crop"
cp -n benchmarks/results/augmentation_cuda_*.json "$OUT" 2>/dev/null
suite cnn_fp32 40 cnn float32 512 131072 convolt "pytorch tuned"
if [ -n "${CONVOLT_DATA:-}" ]; then suite mnist 30 mnist bfloat16 512 60000 convolt "pytorch tuned"; fi
part recurrent 25 python3 benchmarks/recurrent.py --device cuda --batch 512 --rounds 1 --seconds 2 --sides convolt pytorch
suite resnet50 60 resnet50 bfloat16 128 2048 convolt "pytorch tuned" "torch.compile max-autotune"
part syncs 25 python3 benchmarks/host_syncs.py --device cuda
part zoo 120 python3 benchmarks/zoo.py --device cuda --peers convolt "pytorch eager" --budget 1 --limit 20 --minutes 2 --output "$OUT/zoo_cuda_$(date +%F).json"
