#!/bin/bash
# serve.sh PORT BLOCKS   (a block is 32 tokens: 750 blocks = 24,000 tokens of KV cache)
# Serves the tiny model on loopback as "tiny" and stays in the foreground; stop it with
# SIGTERM to this process (it takes its engine and worker down with it).
# Environment: VENV, MODEL (as for setup.sh), CORE (which core the worker's one compute
# thread is bound to), MAX_LEN, MAX_SEQS, MAX_BATCHED, EXTRA (more vllm flags).
set -euo pipefail
PORT=${1:?usage: $0 PORT BLOCKS}; BLOCKS=${2:?usage: $0 PORT BLOCKS}
REAL=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/real
VENV=${VENV:-$REAL/venv}; MODEL=${MODEL:-$REAL/model}
CORE=${CORE:-$((PORT % $(nproc)))}
BLOCK=32                                   # the CPU attention kernel takes multiples of 32 only
MAX_LEN=${MAX_LEN:-16384}
MOST=$(((BLOCKS - 1) * BLOCK))               # one block is vllm's null block, never usable
[ "$MAX_LEN" -le "$MOST" ] || MAX_LEN=$MOST   # vllm refuses to start when one full-length request does not fit
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_TARGET_DEVICE=cpu
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}   # GiB; only a start value, BLOCKS overrides it
export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=$CORE
# shellcheck disable=SC2086
exec "$VENV/bin/vllm" serve "$MODEL" --served-model-name tiny --load-format dummy \
  --host 127.0.0.1 --port "$PORT" --dtype float32 --enforce-eager \
  --enable-prefix-caching --block-size $BLOCK --num-gpu-blocks-override "$BLOCKS" \
  --max-model-len "$MAX_LEN" --max-num-seqs "${MAX_SEQS:-64}" --max-num-batched-tokens "${MAX_BATCHED:-2048}" \
  --enable-prompt-tokens-details --enable-server-load-tracking --disable-uvicorn-access-log ${EXTRA:-}
