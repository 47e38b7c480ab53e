#!/bin/bash
# mini_swe_agent.sh [flags of mini_swe_agent.py]
# Installs mini-swe-agent in an environment of its own and runs it through Thundergate.
# Environment: MINI_VENV (default target/real/mini), PYTHON, and those of serve.sh and fleet.py.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REAL=$(cd "$HERE/../.." && pwd)/target/real
MINI_VENV=${MINI_VENV:-$REAL/mini}
VERSION=2.4.6 LITELLM=1.106.2
if [ ! -e "$MINI_VENV/.mini_${VERSION}_$LITELLM" ]; then
  mkdir -p "$(dirname "$MINI_VENV")"
  [ -x "$MINI_VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$MINI_VENV"
  # without its extra "mcp" this litellm fails on the first request that has tools
  "$MINI_VENV/bin/python" -m pip install -q --disable-pip-version-check \
    "mini-swe-agent==$VERSION" "litellm[mcp]==$LITELLM"
  touch "$MINI_VENV/.mini_${VERSION}_$LITELLM"
fi
# the patch of examples/ is for this version
PATCH=$HERE/../../examples/mini-swe-agent/mini-swe-agent-$VERSION.patch
patch --dry-run -s -p1 -d "$("$MINI_VENV/bin/pip" show mini-swe-agent | sed -n 's/^Location: //p')" <"$PATCH"
exec "$MINI_VENV/bin/python" "$HERE/mini_swe_agent.py" "$@"
