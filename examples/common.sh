# shellcheck shell=bash
# What the scripts here share: processes that end with the script, waits with a bound, one log a process.
# Sourced; needs bash, curl, python3.

EXAMPLES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DRY=${DRY:-}                                          # 1: simulated engines and scripted answers, no GPU
LOGS=${LOGS:-$PWD/logs}                               # one file a process
THUNDERGATE=${THUNDERGATE:-$EXAMPLES/../target/release/thundergate}
PYTHON=${PYTHON:-python3}                             # that the agents are installed for
GRACE=${GRACE:-30}                                    # seconds that a process gets to end, before it is killed

PIDS=()

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

# need COMMAND REMEDY
need() { command -v "$1" >/dev/null || fail "$1 is not here: $2"; }

# start NAME COMMAND...: in the background, its output in LOGS/NAME.log.
start() {
  local name=$1
  shift
  "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  PIDS+=("$!")
  say "$name started (pid $!, $LOGS/$name.log)"
}

# Ends what was started, and nothing else.
stop_all() {
  local status=$? pid end=$((SECONDS + GRACE))
  trap - EXIT
  trap '' INT TERM HUP
  [ ${#PIDS[@]} = 0 ] || kill -TERM "${PIDS[@]}" 2>/dev/null || true
  for pid in "${PIDS[@]}"; do
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < end)); do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  exit "$status"
}

# From here on every way out of the script goes through stop_all.
begin() {
  need curl "install it with your package manager"
  need "$PYTHON" "set PYTHON to a Python 3"
  [ -x "$THUNDERGATE" ] || fail "no $THUNDERGATE: run \`make build\`, or set THUNDERGATE to the binary"
  mkdir -p "$LOGS"
  trap stop_all EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

# must_be_free PORT SETTING: somebody else's server there must not pass for ours.
must_be_free() {
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || fail "port $1 is taken: stop what listens there, or set $2"
}

# wait_for URL SECONDS [PID NAME]: until it answers 2xx; fails at once if the process has ended.
wait_for() {
  local url=$1 seconds=$2 pid=${3:-} name=${4:-} end=$((SECONDS + $2))
  until curl -sf --max-time 5 -o /dev/null "$url"; do
    if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then
      tail -n 20 "$LOGS/$name.log" >&2
      fail "$name has ended; the end of $LOGS/$name.log is above"
    fi
    ((SECONDS < end)) || fail "$url did not answer within $seconds s${name:+; see $LOGS/$name.log}"
    sleep 0.2
  done
}

# The gate in front of BACKENDS, or of what serve.sh starts on this machine if there are none. Sets GATE.
start_gate() {
  local port=${PORT:-8300}
  GATE=http://127.0.0.1:$port
  must_be_free "$port" PORT
  if [ -z "${BACKENDS:-}" ]; then
    start serve env GRACE=$((GRACE - 5)) "$EXAMPLES/serve.sh" # so that it has the time to end its servers
    local serve=$!
    until BACKENDS=$(grep -m1 '^BACKENDS=' "$LOGS/serve.log"); do
      kill -0 "$serve" 2>/dev/null || { cat "$LOGS/serve.log" >&2; fail "serve.sh has ended"; }
      sleep 0.2
    done
    BACKENDS=${BACKENDS#BACKENDS=}
  fi
  local url
  for url in ${BACKENDS//,/ }; do
    wait_for "$url/health" 60
  done
  start thundergate "$THUNDERGATE" --backends "$BACKENDS" --port "$port"
  wait_for "$GATE/readyz" 60 $! thundergate
  MODEL_NAME=$(curl -sf "$GATE/v1/models" | "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')
  say "$GATE serves $MODEL_NAME on $BACKENDS"
}

# What it came to; fails if a program was not released.
finish() {
  local left
  left=$(curl -sf "$GATE/programs" | "$PYTHON" -c 'import json, sys; print(len(json.load(sys.stdin)))')
  curl -sf -H 'accept: text/plain' "$GATE/metrics" |
    grep -E '^thundergate_(requests_total|released_total|backend_prefix_hit_ratio|(prompt|cached|completion)_tokens_total)' || true
  [ "$left" = 0 ] || fail "$left programs were not released"
  say "done; every program was released"
}
