#!/usr/bin/env bash
# OpenHands on a file of tasks through Thundergate. On one machine: vLLM, Thundergate and the agents, all from here.
# With several: serve.sh on each GPU machine, then this with BACKENDS=http://gpu1:8000,http://gpu2:8000
# The agents run commands on this machine, in OUT: use one that may be spoiled.
# Settings, by environment, besides those of serve.sh and common.sh:
#   BACKENDS  vLLM servers that run already     PORT     of Thundergate (8300)
#   TASKS     tasks.jsonl beside this           WORKERS  64                       OUT  ./openhands-MODEL
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../common.sh"

TASKS=${TASKS:-$HERE/tasks.jsonl} WORKERS=${WORKERS:-64} OUT=${OUT:-}

installed() { "$PYTHON" -c 'import openhands.sdk, openhands.tools' 2>>"$LOGS/agents.log"; }

export OPENHANDS_SUPPRESS_BANNER=1 LITELLM_LOCAL_MODEL_COST_MAP=True
begin
: >"$LOGS/agents.log"
if [ -z "$DRY" ]; then
  installed || fail "OpenHands is not installed for $PYTHON (3.12 or later): pip install openhands-sdk openhands-tools"
  [ -r "$TASKS" ] || fail "no $TASKS: a file of lines {\"id\": …, \"prompt\": …}"
else
  export SCRIPT=$HERE/dry.jsonl
fi
start_gate
OUT=${OUT:-$PWD/openhands-${MODEL_NAME##*/}}

if [ -n "$DRY" ] && ! installed; then
  say "OpenHands is not installed: a small agent in its place"
  agents=("$PYTHON" "$EXAMPLES/agent.py" "$GATE" "$MODEL_NAME" 8 4)
else
  agents=("$PYTHON" "$HERE/solve.py" "$GATE" "$MODEL_NAME" "$TASKS" "$WORKERS" "$OUT")
fi
say "agents run; their output is in $LOGS/agents.log, results in $OUT"
start agents "${agents[@]}"
wait $! || fail "the agents failed: see $LOGS/agents.log"
tail -n 3 "$LOGS/agents.log"
finish
