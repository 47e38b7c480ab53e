#!/usr/bin/env bash
# vLLM on this machine, one server per TP GPUs; prints BACKENDS=… when all of them are healthy, ends on ^C or SIGTERM.
# Settings, by environment:
#   MODEL     glm (zai-org/GLM-4.6-FP8), qwen (Qwen/Qwen3-235B-A22B-Instruct-2507-FP8), or any model or directory
#   TP        GPUs of one server (8 for glm, 4 for qwen)    SERVERS    as many as fit on the GPUs
#   HOST      name by which the gate reaches this machine (127.0.0.1)    FIRST_PORT  8000, the next server's is one more
#   VLLM_ARGS more flags for `vllm serve`     START_WAIT  seconds for the download and the start (7200)
#   DRY, LOGS, THUNDERGATE, GRACE as in common.sh; SCRIPT is what the simulated engines of DRY=1 answer
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FIRST_PORT=${FIRST_PORT:-8000} HOST=${HOST:-127.0.0.1} START_WAIT=${START_WAIT:-7200}
MODEL=${MODEL:-glm}
FLAGS=()
case $MODEL in
  glm)
    MODEL=zai-org/GLM-4.6-FP8 TP=${TP:-8}
    FLAGS=(--tool-call-parser glm45 --reasoning-parser glm45)
    ;;
  qwen)
    # Its experts in FP8 blocks of 128 cannot be cut in eight.
    MODEL=Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 TP=${TP:-4}
    FLAGS=(--tool-call-parser hermes)
    ;;
  *) TP=${TP:-1} ;;
esac
[ ${#FLAGS[@]} = 0 ] || FLAGS+=(--enable-auto-tool-choice)
FLAGS+=(--enable-prefix-caching --enable-prompt-tokens-details)
read -ra MORE <<<"${VLLM_ARGS:-}"

begin
if [ -n "$DRY" ]; then
  SERVERS=${SERVERS:-2}
else
  need vllm "pip install vllm"
  need nvidia-smi "this machine has no NVIDIA GPU or no driver; DRY=1 needs none"
  gpus=$(nvidia-smi -L | grep -c '^GPU') || true
  SERVERS=${SERVERS:-$((gpus / TP))}
  ((SERVERS > 0 && SERVERS * TP <= gpus)) || fail "$SERVERS servers of $TP GPUs each, and $gpus GPUs here: set TP and SERVERS"
  if [ ! -d "$MODEL" ]; then
    need hf "pip install huggingface_hub"
    say "downloading $MODEL, if it is not here yet"
    hf download "$MODEL" >"$LOGS/download.log" 2>&1 || fail "no $MODEL: see $LOGS/download.log; a gated model needs \`hf auth login\`"
  fi
fi

urls=()
for ((i = 0; i < SERVERS; i++)); do
  port=$((FIRST_PORT + i))
  must_be_free "$port" FIRST_PORT
  if [ -n "$DRY" ]; then
    start "engine-$i" "$THUNDERGATE" engine --port "$port" --model "$MODEL" --kv-blocks 20000 --max-model-len 131072 \
      --speed 100 ${SCRIPT:+--script "$SCRIPT"}
  else
    devices=$(seq -s, $((i * TP)) $((i * TP + TP - 1)))
    CUDA_VISIBLE_DEVICES=$devices start "vllm-$i" vllm serve "$MODEL" --host 0.0.0.0 --port "$port" \
      --tensor-parallel-size "$TP" "${FLAGS[@]}" "${MORE[@]}"
  fi
  urls+=("http://$HOST:$port")
done
for ((i = 0; i < SERVERS; i++)); do
  name=vllm-$i
  [ -z "$DRY" ] || name=engine-$i
  wait_for "http://127.0.0.1:$((FIRST_PORT + i))/health" "$START_WAIT" "${PIDS[i]}" "$name"
done
(IFS=,; echo "BACKENDS=${urls[*]}")
wait -n || true
fail "a server has ended: see $LOGS"
