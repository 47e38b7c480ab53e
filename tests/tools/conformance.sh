#!/usr/bin/env bash
# Slow clients and many streams against a running proxy, with Debian's slowhttptest and nghttp2-client; meanwhile a step
# is asked for again and again. Fails if any of those is refused or takes more than five seconds.
# BIN=target/release/thundergate SECONDS_EACH=20 tests/tools/conformance.sh
set -euo pipefail
bin=${BIN:-target/release/thundergate}
seconds=${SECONDS_EACH:-20}
dir=$(mktemp -d)
for tool in slowhttptest h2load nghttp curl; do
    command -v "$tool" >/dev/null || { echo "install slowhttptest, nghttp2-client and curl"; exit 2; }
done
ulimit -n 8192
cat >"$dir/conf.yaml" <<YAML
listen: 127.0.0.1:18300
backends: [http://127.0.0.1:18301]
timeouts: {request_header: 3s, client_idle: 5s, stream_idle: 5s}
logging: {access: {path: $dir/access}}
YAML
"$bin" engine --port 18301 --model tiny --speed 100 >"$dir/engine" 2>&1 &
engine=$!
"$bin" --config "$dir/conf.yaml" --upgrade-socket "$dir/up.sock" >"$dir/log" 2>&1 &
proxy=$!
trap 'kill $engine $proxy 2>/dev/null; rm -rf "$dir"' EXIT
url=http://127.0.0.1:18300
until curl -sf "$url/readyz" >/dev/null; do sleep 0.2; done

body='{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":4}'
step() {
    curl -s -m 5 -o /dev/null -w '%{http_code} %{time_total}\n' -H 'content-type: application/json' \
        -d "$body" "$url/v1/chat/completions" || true
}

# Asks for steps until the file `stop` is there.
probe() {
    rm -f "$dir/stop"
    while [ ! -e "$dir/stop" ]; do step; sleep 0.2; done >"$dir/steps"
}

failed=0
# What was asked for meanwhile.
tell() {
    awk -v what="$1" '$1 == 200 {ok++; if ($2 > worst) worst = $2} END {
        printf "%-14s %d steps, %d failed, slowest %.3f s; ", what, NR, NR - ok, worst; exit NR != ok || NR == 0 }' \
        "$dir/steps" || failed=1
    echo "408 for $(grep -c '"status":408' "$dir/access") bodies so far; memory $(awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$proxy/status") MB"
}

during() {
    what=$1
    shift
    probe &
    local probing=$!
    "$@" >"$dir/tool" 2>&1 || true
    touch "$dir/stop"
    wait "$probing"
    sed 's/\x1b\[[0-9;]*m//g' "$dir/tool" | tr '\r' '\n' | grep -E '^(closed|connected|error|pending|finished in|requests:|status codes):?' | tail -5 || true
    tell "$what"
}

# shellcheck disable=SC2317 # called through `during`
slow() { slowhttptest -c 1000 -r 500 -l "$seconds" -p 2 "$@"; }
during "slow heads" slow -H -i 1 -t GET -u "$url/v1/models"
during "slow bodies" slow -B -i 1 -s 8192 -x 10 -t POST -u "$url/v1/chat/completions"
during "slow reading" slow -X -w 1 -y 8 -n 1 -z 1 -k 3 -u "$url/metrics"
during "ranges" slow -R -a 1 -b 3000 -t HEAD -u "$url/v1/models"
printf '%s' "$body" >"$dir/body"
during "HTTP/2" h2load -n 2000 -c 20 -m 10 -d "$dir/body" -H 'content-type: application/json' "$url/v1/chat/completions"
nghttp -nv "$url/v1/models" 2>&1 | sed 's/\x1b\[[0-9;]*m//g' | grep -E ':status|GOAWAY|ERROR' | head -3
step >"$dir/steps"
tell "afterwards"
curl -sf "$url/health" | grep -o '"reasoning_count":[0-9]*'
exit "$failed"
