#!/bin/bash
# What `make real` runs after a release build: installs vLLM for the CPU, then real clients, then
# mini-swe-agent, then the comparison on two servers (its table comes last). About 12 minutes.
# Environment (or `make real NAME=value`):
#   REAL_PARTS    of: clients mini compare        REAL_MODES    as in compare.py
#   REAL_AGENTS   32,16                           REAL_ROUNDS   1
#   REAL_SECONDS  60, length of a window          REAL_WARMUP   30, seconds before it
#   REAL_TOOLS    0.2,1, tool time in seconds     THUNDERAGENT_CMD, a baseline to compare with
#   GATE, the binary; VENV, MODEL, MINI_VENV, PYTHON as in the scripts beside this one
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REAL=$(cd "$HERE/../.." && pwd)/target/real
export VENV=${VENV:-$REAL/venv} MODEL=${MODEL:-$REAL/model}
"$HERE/setup.sh"
for part in ${REAL_PARTS:-clients mini compare}; do
  echo "== $part"
  case $part in
    clients) "$VENV/bin/python" "$HERE/clients_openai.py" ;;
    mini) "$HERE/mini_swe_agent.sh" ;;
    compare)
      "$VENV/bin/python" "$HERE/compare.py" \
        --modes "${REAL_MODES:-pinned,round-robin,thundergate,thunderagent,thunderagent-decay}" \
        --agents "${REAL_AGENTS:-32,16}" --rounds "${REAL_ROUNDS:-1}" \
        --seconds "${REAL_SECONDS:-60}" --warmup "${REAL_WARMUP:-30}" --tools "${REAL_TOOLS:-0.2,1}"
      ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done
