#!/usr/bin/env bash
# mini-swe-agent on SWE-bench through Thundergate. On one machine: vLLM, Thundergate and the agents, all from here.
# With several: serve.sh on each GPU machine, then this with BACKENDS=http://gpu1:8000,http://gpu2:8000
# Settings, by environment, besides those of serve.sh and common.sh:
#   BACKENDS  vLLM servers that run already     PORT     of Thundergate (8300)
#   SUBSET    lite    SPLIT  test    SLICE  all, or 0:20    WORKERS  128    OUT  ./swebench-MODEL
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../common.sh"

SUBSET=${SUBSET:-lite} SPLIT=${SPLIT:-test} SLICE=${SLICE:-} WORKERS=${WORKERS:-128} OUT=${OUT:-}

installed() { "$PYTHON" -c 'import minisweagent.run.benchmarks.swebench, datasets' 2>>"$LOGS/agents.log"; }

begin
: >"$LOGS/agents.log"
more=()
if [ -z "$DRY" ]; then
  installed || fail "mini-swe-agent is not installed for $PYTHON: pip install 'mini-swe-agent==2.4.6' 'litellm[mcp]' datasets"
  need docker "each instance runs in a container of its own"
  docker info >/dev/null 2>&1 || fail "no Docker engine answers: start it, or join the group docker"
else
  export SCRIPT=$HERE/dry.jsonl
  SUBSET=$LOGS/dataset SPLIT=test WORKERS=4
  mkdir -p "$SUBSET"
  for n in 1 2 3 4 5 6 7 8; do
    echo "{\"instance_id\": \"dry__run-$n\", \"problem_statement\": \"Task $n.\"}"
  done >"$SUBSET/test.jsonl"
  more=(--environment-class local -c environment.cwd="$LOGS")
fi
start_gate
OUT=${OUT:-$PWD/swebench-${MODEL_NAME##*/}}

# No banner, no set-up dialogue, no look-ups of prices that a model of one's own does not have.
export MSWEA_SILENT_STARTUP=1 MSWEA_CONFIGURED=true MSWEA_COST_TRACKING=ignore_errors LITELLM_LOCAL_MODEL_COST_MAP=True
if [ -n "$DRY" ] && ! installed; then
  say "mini-swe-agent is not installed: a small agent in its place"
  agents=("$PYTHON" "$EXAMPLES/agent.py" "$GATE" "$MODEL_NAME" 8 "$WORKERS")
else
  # A held step waits in the gate: the client must be more patient than its default of ten minutes.
  agents=("$PYTHON" "$HERE/swebench.py" --subset "$SUBSET" --split "$SPLIT" --slice "$SLICE" --workers "$WORKERS" -o "$OUT"
    -c swebench.yaml -c model.model_name="hosted_vllm/$MODEL_NAME" -c model.model_kwargs.api_base="$GATE/v1"
    -c model.model_kwargs.api_key=none -c model.model_kwargs.timeout=7200 -c agent.cost_limit=0 "${more[@]}")
fi
say "agents run; their output is in $LOGS/agents.log, results in $OUT"
start agents "${agents[@]}"
wait $! || fail "the agents failed: see $LOGS/agents.log"
tail -n 3 "$LOGS/agents.log"
finish
