#!/usr/bin/env python3
"""Thundergate beside its alternatives on two real vLLM servers; prints one table of medians.

Modes, each over the same two servers, one after another within a round, so that slow drift of the
machine falls on all of them:
  pinned                agent i always to server i mod 2, no proxy
  round-robin           each step to the next server, no proxy
  thundergate           through Thundergate
  thundergate-default   through `thundergate --router default`
  thunderagent          through the command in THUNDERAGENT_CMD; left out when that is not set
  thunderagent-decay    the same with --use-acting-token-decay
A proxy is started anew for each run, and a run starts on servers with nothing in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from fleet import HERE, REAL, Fleet, gate_path, thunderagent_argv, wait_idle

MODES = ("pinned", "round-robin", "thundergate", "thundergate-default", "thunderagent", "thunderagent-decay")
SLACK = 180.0  # seconds that a run may take beyond its warm-up and window


def mode_argv(mode: str) -> list[str] | None:
    """The proxy's command for a mode; none for the modes without a proxy."""
    kind, _, variant = mode.partition("-")
    if kind == "thundergate":
        return [gate_path(), *(["--router", "default"] if variant else [])]
    if kind == "thunderagent":
        return thunderagent_argv(*(["--use-acting-token-decay"] if variant else []))
    return None


def chosen_modes(names: str) -> list[str]:
    modes = [name for name in names.split(",") if name]
    for mode in modes:
        if mode not in MODES:
            sys.exit(f"unknown mode {mode}; there are: {', '.join(MODES)}")
    missing = [mode for mode in modes if mode.startswith("thunderagent") and mode_argv(mode) is None]
    if missing:
        print(f"left out, THUNDERAGENT_CMD is not set: {', '.join(missing)}", file=sys.stderr)
    return [mode for mode in modes if mode not in missing]


def run_once(fleet: Fleet, servers: list[str], mode: str, agents: int, seed: int, args: argparse.Namespace) -> Any:
    """One mode for one window; its report, or a dictionary with only an `error`."""
    if not wait_idle(servers):
        return {"error": "a server did not become idle"}
    argv = [sys.executable, str(HERE / "agents.py"), "--agents", str(agents), "--seed", str(seed)]
    argv += ["--warmup", str(args.warmup), "--seconds", str(args.seconds), "--tools", args.tools]
    argv += args.agent_flags
    command, proxy = mode_argv(mode), None
    if command:
        url, proxy = fleet.proxy(f"{mode}-{agents}", command, servers)
        argv += ["--target", url, "--servers", ",".join(servers), "--proxy-pid", str(proxy.pid)]
    else:
        argv += [f"--{mode}", ",".join(servers)]
    out = REAL / "logs" / f"agents-{mode}-{agents}.json"
    out.unlink(missing_ok=True)
    client = fleet.start(f"agents-{mode}-{agents}", [*argv, "--out", str(out)])
    try:
        if not ended_within(client, args.warmup + args.seconds + SLACK) or not out.exists():
            return {"error": client.tail(5)}
        return json.loads(out.read_text())
    finally:
        fleet.stop(client)
        if proxy:
            fleet.stop(proxy)


def ended_within(process: Any, limit: float) -> bool:
    end = time.monotonic() + limit
    while process.alive() and time.monotonic() < end:
        time.sleep(0.2)
    return not process.alive()


def measure(args: argparse.Namespace, modes: list[str], runs: list[dict[str, Any]]) -> None:
    """Appends one report to `runs` for each run."""
    with Fleet() as fleet:
        print(f"starting {args.servers} vLLM servers of {args.blocks} blocks", file=sys.stderr)
        servers = fleet.vllm(args.servers, args.blocks)
        for turn in range(args.rounds):
            for agents in args.agents:
                for mode in modes[turn % len(modes) :] + modes[: turn % len(modes)]:
                    result = run_once(fleet, servers, mode, agents, args.seed + turn, args)
                    runs.append({"mode": mode, "agents": agents, "round": turn, **result})
                    print(progress(runs[-1]), file=sys.stderr, flush=True)


def progress(run: dict[str, Any]) -> str:
    head = f"round {run['round'] + 1}  {run['agents']:>3} agents  {run['mode']:<20}"
    if "error" in run:
        return f"{head} FAILED: {run['error']}"
    return f"{head} {run['steps_per_min']:>7} steps/min  hits {percent(run['hit_rate'])}"


# === The table ===


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def at(run: dict[str, Any], *path: str) -> float | None:
    value: Any = run
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def median(runs: list[dict[str, Any]], *path: str) -> float | None:
    values = [value for value in (at(run, *path) for run in runs) if value is not None]
    return statistics.median(values) if values else None


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


COLUMNS = (
    "agents",
    "mode",
    "steps/min",
    "hits",
    "later p50",
    "p95",
    "p99",
    "first p95",
    "idle+held",
    "cpu ms/step",
    "errors",
)


def row(agents: int, mode: str, runs: list[dict[str, Any]]) -> list[str]:
    good = [run for run in runs if "error" not in run]
    failed = len(runs) - len(good)
    cpu = [1000 * run["proxy_cpu_s"] / run["steps"] for run in good if run["proxy_cpu_s"] is not None and run["steps"]]
    return [
        str(agents),
        mode,
        seconds(median(good, "steps_per_min")),
        percent(median(good, "hit_rate")),
        *(seconds(median(good, "later_step_s", key)) for key in ("p50", "p95", "p99")),
        seconds(median(good, "first_step_s", "p95")),
        percent(median(good, "empty_while_held_share")),
        f"{statistics.median(cpu):.2f}" if cpu else "-",
        str(sum(run["errors"] for run in good)) + (f" +{failed} failed" if failed else ""),
    ]


def table(runs: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys((run["agents"], run["mode"]) for run in runs))
    keys.sort(key=lambda key: (key[0], MODES.index(key[1])))
    rows = [list(COLUMNS)]
    rows += [row(*key, [run for run in runs if (run["agents"], run["mode"]) == key]) for key in keys]
    widths = [max(len(line[column]) for line in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in rows)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def save(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine(), "settings": settings, "runs": runs}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="pinned,round-robin,thundergate,thunderagent,thunderagent-decay")
    parser.add_argument("--agents", type=lambda text: [int(part) for part in text.split(",")], default=[32, 16])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warmup", type=float, default=30, help="seconds")
    parser.add_argument("--seconds", type=float, default=60, help="length of each window")
    parser.add_argument("--tools", default="0.2,1", help="tool time in seconds (slow: 2,10)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each round has the next one")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=750, help="KV blocks of 32 tokens per server")
    parser.add_argument("--out", type=Path, default=REAL / "compare.json")
    parser.add_argument("agent_flags", nargs="*", help="after --: more flags for agents.py")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    modes = chosen_modes(args.modes)
    runs: list[dict[str, Any]] = []
    try:
        measure(args, modes, runs)
    finally:
        if runs:
            save(args, runs)
            print(table(runs))
            print(f"medians of {args.rounds} round(s) of {args.seconds:.0f} s, times in seconds; more in {args.out}")
    if any("error" in run for run in runs):
        sys.exit("a run failed")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
