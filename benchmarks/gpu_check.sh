#!/usr/bin/env bash
# All checks that need a CUDA device, in one call of ten minutes at the most, the most valuable first.
# Results go to $OUT (by default benchmarks/results/gpu) as they come, so that an interrupted run keeps what it has.
#
#   bash benchmarks/gpu_check.sh
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
OUT="${OUT:-benchmarks/results/gpu}"
mkdir -p "$OUT"
SUITE="$OUT/suite_cuda_$(date +%F).json"

part() {  # part NAME SECONDS COMMAND…
  local name="$1" limit="$2"
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 40
  echo "== $name: exit ${PIPESTATUS[0]}"
}

suite() {  # suite NAME SECONDS WORKLOAD PRECISION BATCH IMAGES PEERS…: plain PyTorch runs in Convolt's own environment where it has none
  local name="$1" limit="$2" workload="$3" precision="$4" batch="$5" images="$6"
  shift 6
  part "$name" "$limit" python3 benchmarks/suite.py --device cuda --workloads "$workload" --precisions "$precision" --batches "$batch" \
    --images "$images" --rounds 1 --budget 3 --limit $((limit - 20)) --minutes 8 --output "$SUITE" --peers "$@"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv | tee "$OUT/machine.log"
part tests 145 python3 -m pytest tests/gpu -q -m gpu -p no:cacheprovider -o filterwarnings=default --durations=5
suite cnn_bf16 80 cnn bfloat16 512 131072 convolt "pytorch tuned" "torch.compile max-autotune"
suite cnn_fp32 40 cnn float32 512 131072 convolt "pytorch tuned"
suite resnet18 80 resnet18 bfloat16 512 51200 convolt "pytorch tuned" "torch.compile max-autotune"
if [ -n "${CONVOLT_DATA:-}" ]; then suite mnist 30 mnist bfloat16 512 60000 convolt "pytorch tuned"; fi
if [ -n "${CONVOLT_DATA:-}" ]; then  # eight epochs with its recipe, to 94%
  part speednet 60 python3 benchmarks/speednet.py --device cuda --target 0.94 --output "$OUT/speednet_cuda_$(date +%F).json"
fi
part kernels 50 python3 benchmarks/kernels.py --device cuda
part syncs 25 python3 benchmarks/host_syncs.py --device cuda
part recurrent 25 python3 benchmarks/recurrent.py --device cuda --batch 512 --rounds 1 --seconds 2 --sides convolt pytorch
suite resnet50 65 resnet50 bfloat16 128 2048 convolt "pytorch tuned" "torch.compile max-autotune"
