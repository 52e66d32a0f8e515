#!/usr/bin/env bash
# All checks that need a CUDA device, in one call of under nine minutes, the most valuable first.
# Results go to $OUT (by default benchmarks/results/gpu) as they come, so that an interrupted run keeps what it has.
#
#   bash benchmarks/gpu_check.sh
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
OUT="${OUT:-benchmarks/results/gpu}"
mkdir -p "$OUT"

part() {  # part NAME SECONDS COMMAND…
  local name="$1" limit="$2"
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 40
  echo "== $name: exit ${PIPESTATUS[0]}"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv | tee "$OUT/machine.log"
part tests 150 python3 -m pytest tests/gpu -q -m gpu -p no:cacheprovider -o filterwarnings=default --durations=5
part training_cnn 105 python3 benchmarks/training.py --workload cnn --device cuda --batch 512 --precision float32 bfloat16 \
  --rounds 1 --seconds 3 --sides convolt "pytorch tuned" "pytorch compiled"
part training_resnet18 105 python3 benchmarks/training.py --workload resnet18 --device cuda --batch 512 --precision bfloat16 \
  --rounds 1 --seconds 3 --sides convolt "pytorch tuned" "pytorch compiled"
part kernels 90 python3 benchmarks/kernels.py --device cuda
part syncs 40 python3 benchmarks/host_syncs.py --device cuda
part recurrent 40 python3 benchmarks/recurrent.py --device cuda --batch 512 --rounds 1 --seconds 2 --sides convolt pytorch
cp benchmarks/results/*_cuda_*.json "$OUT"/ 2>/dev/null || echo "no result files"
