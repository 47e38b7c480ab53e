#!/bin/sh
# The simulator's report as Markdown on stdout: every target workload, every policy, mean over seeds.
#
#   bench/simulate.sh 101 102 103 > report.md    for reporting
#   bench/simulate.sh 1 2 3                      for tuning: settings are never chosen on the seeds that are reported
#
# Needs jq. THUNDERGATE: the binary. POLICIES, TARGETS ("workload:programs …"), SIMULATE (further flags): what to run.
set -eu
bin=${THUNDERGATE:-target/release/thundergate}
policies=${POLICIES:-ours,thunderagent,thunderagent-decay,thunderagent-fixed,round-robin,least-connections,sticky,prefix-aware}
targets=${TARGETS:-swe:160 swe:320 openhands:64 openhands:128 hle:200 mixed:128}
[ $# -gt 0 ] || set -- 101 102 103

echo "Seeds: $*. $("$bin" --version), 4 engines, 60 minutes of which 10 are warm-up.${SIMULATE:+ Flags: $SIMULATE.}"
for target in $targets; do
    for seed in "$@"; do
        # shellcheck disable=SC2086
        "$bin" simulate --workload "${target%:*}" --programs "${target#*:}" --policies "$policies" --seed "$seed" \
            --format json --quiet ${SIMULATE:-}
    done | jq -rs --arg title "${target%:*}, ${target#*:} programs" '
        def mean: map(select(. != null)) | if length == 0 then null else add / length end;
        def fixed(digits): if . == null then "–" else . * pow(10; digits) | round / pow(10; digits) | tostring end;
        def of(key): map(.[key]) | mean;
        add | (map(.policy) | reduce .[] as $p ([]; if index($p) then . else . + [$p] end)) as $order
        | (map(select(.policy == $order[0])) | of("steps_per_min")) as $first
        | "\n## \($title)\n",
          "| policy | steps/min | \($order[0]) is | of the bound | programs/min | prefix hits | step p50 s | p95 s | p99 s | program p50 s | longest wait s | of a started one | preemptions | imbalance |",
          "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
          ($order[] as $p | map(select(.policy == $p))
            | (map(.steps_per_min) | "\(mean | fixed(1)) (\(min | fixed(0))–\(max | fixed(0)))") as $steps
            | "| \($p) | \($steps) | \($first / of("steps_per_min") | fixed(2))× | \(of("steps_per_min") / of("bound_steps_per_min") * 100 | fixed(1))% | \(of("programs_per_min") | fixed(2)) | \(of("hit_rate") * 100 | fixed(1))% | \(of("step_p50_s") | fixed(1)) | \(of("step_p95_s") | fixed(1)) | \(of("step_p99_s") | fixed(1)) | \(of("completion_p50_s") | fixed(0)) | \(map(.longest_wait_s) | max | fixed(0)) | \(map(.longest_started_wait_s) | max | fixed(0)) | \(of("preemptions") | fixed(0)) | \(of("imbalance") | fixed(2)) |")'
done
