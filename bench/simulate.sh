#!/bin/sh
# The simulator's report as Markdown on stdout: every target workload under every policy, then what goes wrong.
# Medians over the seeds; the longest waits are the longest of all.
#
#   bench/simulate.sh 101 102 103 > report.md    for reporting
#   bench/simulate.sh 1 2 3                      for tuning: settings are never chosen on the seeds that are reported
#
# Needs jq. THUNDERGATE: the binary. POLICIES, TARGETS ("workload:programs …"), FAULTS, SIMULATE (further flags): what to run.
set -eu
bin=${THUNDERGATE:-target/release/thundergate}
policies=${POLICIES:-ours,thunderagent,thunderagent-decay,thunderagent-fixed,round-robin,least-connections,sticky,prefix-aware}
targets=${TARGETS:-swe:48 swe:160 swe:320 openhands:64 openhands:128 hle:200 mixed:128 chat:800}
faults=${FAULTS-capacity:1.3 estimate:0.7 estimate:1.5 no-usage no-release restart:300s giant:450k burst:1000}
[ $# -gt 0 ] || set -- 101 102 103

# simulate WORKLOAD:PROGRAMS POLICIES FLAGS…: one JSON array for each seed
simulate() {
    target=$1 who=$2 flags=$3
    for seed in $seeds; do
        # shellcheck disable=SC2086
        "$bin" simulate --workload "${target%:*}" --programs "${target#*:}" --policies "$who" --seed "$seed" \
            --format json --quiet $flags ${SIMULATE:-}
    done
}

seeds=$*
figures='
    def median: map(select(. != null)) | sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
    def fixed(digits): if . == null then "–" else . * pow(10; digits) | round / pow(10; digits) | tostring end;
    def of(key): map(.[key]) | median;
    def longest(key): map(.[key]) | max;'

echo "Seeds: $*. $("$bin" --version), 4 engines, 60 minutes of which 10 are warm-up.${SIMULATE:+ Flags: $SIMULATE.}"
for target in $targets; do
    simulate "$target" "$policies" "" | jq -rs --arg title "${target%:*}, ${target#*:} programs" "$figures"'
        add | (map(.policy) | reduce .[] as $p ([]; if index($p) then . else . + [$p] end)) as $order
        | (map(select(.policy == $order[0])) | of("steps_per_min")) as $first
        | "\n## \($title)\n",
          "| policy | steps/min | \($order[0]) is | of the bound | programs/min | prefix hits | step p50 s | p95 s | p99 s | program p50 s | p95 s | longest wait s | of a started one | imbalance |",
          "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
          ($order[] as $p | map(select(.policy == $p))
            | (map(.steps_per_min) | "\(median | fixed(1)) (\(min | fixed(0))–\(max | fixed(0)))") as $steps
            | "| \($p) | \($steps) | \($first / of("steps_per_min") | fixed(2))× | \(of("steps_per_min") / of("bound_steps_per_min") * 100 | fixed(1))% | \(of("programs_per_min") | fixed(2)) | \(of("hit_rate") * 100 | fixed(1))% | \(of("step_p50_s") | fixed(1)) | \(of("step_p95_s") | fixed(1)) | \(of("step_p99_s") | fixed(1)) | \(of("completion_p50_s") | fixed(0)) | \(of("completion_p95_s") | fixed(0)) | \(longest("longest_wait_s") | fixed(0)) | \(longest("longest_started_wait_s") | fixed(0)) | \(of("imbalance") | fixed(2)) |")'
done

[ -n "$faults" ] || exit 0
printf '\n## Nobody says that a program is done (%s)\n\n| workload | steps/min | of those where all do | prefix hits | step p95 s |\n|---|--:|--:|--:|--:|\n' "${policies%%,*}"
for target in $targets; do
    base=$(simulate "$target" "${policies%%,*}" "" | jq -rs "$figures"'add | of("steps_per_min")')
    simulate "$target" "${policies%%,*}" "--faults no-release" | jq -rs --arg target "$target" --argjson base "$base" "$figures"'add
        | "| \($target) | \(of("steps_per_min") | fixed(1)) | \(of("steps_per_min") / $base * 100 | fixed(1))% | \(of("hit_rate") * 100 | fixed(1))% | \(of("step_p95_s") | fixed(1)) |"'
done

base=$(simulate swe:160 ours "" | jq -rs "$figures"'add | of("steps_per_min")')
printf '\n## What goes wrong: swe, 160 programs\n\n| fault | steps/min | of %s without | prefix hits | longest wait of a started one s |\n|---|--:|--:|--:|--:|\n' "$base"
for fault in $faults; do
    simulate swe:160 ours "--faults $fault" | jq -rs --arg fault "$fault" --argjson base "$base" "$figures"'add
        | "| \($fault) | \(of("steps_per_min") | fixed(1)) | \(of("steps_per_min") / $base * 100 | fixed(1))% | \(of("hit_rate") * 100 | fixed(1))% | \(longest("longest_started_wait_s") | fixed(0)) |"'
done
