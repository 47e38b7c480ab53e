#!/usr/bin/env python3
"""A closed loop of agents against real vLLM, direct or behind a proxy; prints one JSON report.

Each agent runs one program after another: ten steps on a growing conversation (about 1,200 to
3,400 tokens), a tool call between two steps. What an agent says is a function of `--seed` and of
a salt of the run, so that no run is served from the cache that an earlier one left behind. The
first program of each agent begins at a random step, so that the load is steady from the start.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from conversation import Script, Shape
from fleet import cpu_seconds
from watching import Watch, server_counters, watch

STEP_LIMIT = 1800.0  # seconds that a client waits for one step
ERROR_PAUSE = 0.5  # seconds after a failed step, before the agent's next program
RELEASE_LIMIT = 10.0  # seconds

# === Where its steps go ===


class Targets:
    """Which base URL the next step of an agent is sent to."""

    def __init__(self, args: argparse.Namespace):
        self.proxy: str | None = args.target
        self._pinned: list[str] = split(args.pinned)
        self._turn: Iterator[str] = itertools.cycle(split(args.round_robin) or [""])
        self.servers = split(args.servers) or self._pinned or split(args.round_robin)

    def pick(self, agent: int) -> str:
        if self.proxy:
            return self.proxy
        return self._pinned[agent % len(self._pinned)] if self._pinned else next(self._turn)


def split(urls: str | None) -> list[str]:
    return [url.strip().rstrip("/") for url in (urls or "").split(",") if url.strip()]


# === One step ===


@dataclass
class Step:
    first: bool
    start: float
    end: float = 0.0
    ttft: float | None = None
    prompt: int = 0
    cached: int = 0
    output: int = 0
    held_ms: float = 0.0
    moved: bool = False
    error: str | None = None


class StepError(Exception):
    """Why a step failed, in a few words that can be counted."""


async def stream_step(http: aiohttp.ClientSession, url: str, body: dict[str, Any], step: Step) -> tuple[str, str]:
    """Sends one step and reads its stream; the reply and the backend that gave it."""
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise StepError(f"status {answer.status}")
        step.held_ms = float(answer.headers.get("x-thundergate-held-ms", 0))
        reply, done = [], False
        async for line in answer.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            event = json.loads(data)
            if "error" in event:
                raise StepError("error event")
            reply.append(read_event(event, step))
        if not done:
            raise StepError("cut stream")
        if not step.prompt:
            raise StepError("no usage")
        return "".join(reply), answer.headers.get("x-thundergate-backend", "")


def read_event(event: dict[str, Any], step: Step) -> str:
    """The text in one event; notes the first token and the usage."""
    if usage := event.get("usage"):
        step.prompt, step.output = usage["prompt_tokens"], usage["completion_tokens"]
        step.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    piece = "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices", []))
    if piece and step.ttft is None:
        step.ttft = time.monotonic() - step.start
    return piece


# === The agents ===


@dataclass
class Run:
    """What all agents of a run share."""

    args: argparse.Namespace
    shape: Shape
    targets: Targets
    http: aiohttp.ClientSession
    salt: str
    done: list[Step] = field(default_factory=list)
    starts: dict[int, float] = field(default_factory=dict)
    finished: list[float] = field(default_factory=list)
    live: set[str] = field(default_factory=set)


async def agent(run: Run, number: int) -> None:
    await asyncio.sleep(random.Random(f"{run.args.seed}/{number}/start").uniform(0, run.args.stagger))
    for count in itertools.count():
        name = f"{run.salt}-{number}-{count}"
        if await program(run, number, count, name):
            run.finished.append(time.monotonic())
        else:
            await asyncio.sleep(ERROR_PAUSE)
        await release(run, name)


async def program(run: Run, number: int, count: int, name: str) -> bool:
    """Runs one program to its end; false when a step failed."""
    script = Script(run.shape, run.salt, run.args.seed, number, count)
    before, taken = "", 0
    if count == 0 and not run.args.no_spread:
        taken = random.Random(f"{run.args.seed}/{number}/spread").randrange(run.shape.steps)
        script.skip(taken)
    run.live.add(name)
    for index in range(taken, run.shape.steps):
        step = Step(first=index == taken, start=time.monotonic())
        reply, backend = await one_step(run, script, number, name, step)
        step.moved = bool(before and backend and backend != before)
        before = backend
        if step.error:
            return False
        if index + 1 < run.shape.steps:
            await asyncio.sleep(script.tool_time())
            script.answer(reply)
    return True


async def one_step(run: Run, script: Script, number: int, name: str, step: Step) -> tuple[str, str]:
    tokens = script.reply_tokens()
    body: dict[str, Any] = {
        "model": run.args.model,
        "messages": script.messages,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if run.targets.proxy and not run.args.no_id:
        body["program_id"] = name
    run.starts[id(step)] = step.start
    reply = backend = ""
    try:
        reply, backend = await stream_step(run.http, run.targets.pick(number), body, step)
    except (StepError, aiohttp.ClientError, TimeoutError, ValueError) as error:
        step.error = str(error) if isinstance(error, StepError) else type(error).__name__
    finally:
        del run.starts[id(step)]
    step.end = time.monotonic()
    run.done.append(step)
    return reply, backend


async def release(run: Run, name: str) -> None:
    """Tells the proxy that a program has ended; a failure is not the agent's concern."""
    run.live.discard(name)
    if not run.targets.proxy or run.args.no_id or run.args.no_release:
        return
    try:
        limit = aiohttp.ClientTimeout(total=RELEASE_LIMIT)
        async with run.http.post(f"{run.targets.proxy}/programs/release", json={"program_id": name}, timeout=limit):
            pass
    except (aiohttp.ClientError, TimeoutError):
        pass


# === The report ===


def percentiles(values: list[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest, in seconds, by nearest rank."""
    if not values:
        return None
    ranked = sorted(values)
    ranks = {f"p{q}": ranked[min(len(ranked) - 1, max(0, -(-q * len(ranked) // 100) - 1))] for q in (50, 95, 99)}
    return {key: round(value, 3) for key, value in {**ranks, "max": ranked[-1]}.items()}


def ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


@dataclass
class Edge:
    """What is read at the start and at the end of the window."""

    time: float
    counters: list[dict[str, float]]
    cpu: float | None


async def edge(run: Run) -> Edge:
    counters = await server_counters(run.http, run.targets.servers)
    cpu = cpu_seconds(run.args.proxy_pid) if run.args.proxy_pid else None
    return Edge(time.monotonic(), counters, cpu)


def report(run: Run, start: Edge, end: Edge, seen: Watch, open_ages: list[float]) -> dict[str, Any]:
    inside = [step for step in run.done if start.time <= step.end < end.time]
    good = [step for step in inside if not step.error]
    span = end.time - start.time
    errors: dict[str, int] = {}
    for step in inside:
        if step.error:
            errors[step.error] = errors.get(step.error, 0) + 1
    deltas = [{key: e[key] - s[key] for key in s} for s, e in zip(start.counters, end.counters, strict=True)]
    cpu = end.cpu - start.cpu if start.cpu is not None and end.cpu is not None else None
    return {
        "agents": run.args.agents,
        "seed": run.args.seed,
        "window_s": round(span, 2),
        "steps": len(good),
        "steps_per_min": round(60 * len(good) / span, 1),
        "programs": sum(start.time <= when < end.time for when in run.finished),
        "errors": sum(errors.values()),
        "error_kinds": errors,
        "hit_rate": ratio(sum(s.cached for s in good), sum(s.prompt for s in good)),
        "server_hit_rate": ratio(sum(d["hits"] for d in deltas), sum(d["queries"] for d in deltas)),
        "server_hit_rates": [ratio(d["hits"], d["queries"]) for d in deltas],
        "preemptions": sum(d["preemptions"] for d in deltas),
        "largest_prompt": max((s.prompt for s in good), default=0),
        "mean_prompt": round(statistics.fmean(s.prompt for s in good)) if good else 0,
        "step_s": percentiles([s.end - s.start for s in good]),
        "first_step_s": percentiles([s.end - s.start for s in good if s.first]),
        "later_step_s": percentiles([s.end - s.start for s in good if not s.first]),
        "ttft_s": percentiles([s.ttft for s in good if s.ttft is not None]),
        "held_s": percentiles([s.held_ms / 1000 for s in good]) if run.targets.proxy else None,
        "moves": sum(s.moved for s in good),
        "open_at_end": len(open_ages),
        "longest_open_s": round(max(open_ages, default=0.0), 1),
        "held_share": ratio(seen.held, seen.looks),
        "server_idle_share": ratio(seen.idle, seen.looks),
        "empty_while_held_share": ratio(seen.empty_while_held, seen.looks),
        "server_idle_while_held_share": ratio(seen.idle_while_held, seen.looks),
        "proxy_cpu_s": round(cpu, 2) if cpu is not None else None,
    }


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    shape = Shape(args.steps, args.system, args.task, args.tool_output, args.reply, args.tools)
    limit = aiohttp.ClientTimeout(total=STEP_LIMIT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limit, connector=connector) as http:
        run = Run(args, shape, Targets(args), http, args.salt or secrets.token_hex(4))
        tasks = [asyncio.create_task(agent(run, number)) for number in range(args.agents)]
        try:
            await alive_for(tasks, args.warmup)
            seen = Watch()
            start = await edge(run)
            tasks.append(asyncio.create_task(watch(run.http, run.targets.servers, run.targets.proxy, seen)))
            await alive_for(tasks, args.seconds)
            end = await edge(run)
            open_ages = [end.time - since for since in run.starts.values()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(release(run, name) for name in list(run.live)))
        return report(run, start, end, seen, open_ages)


async def alive_for(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Lets the agents run; one that ends is a mistake of this file and is raised."""
    ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


# === Arguments ===


def pair(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, Any]:
        low, high = (kind(part) for part in text.split(","))
        if not 0 <= low <= high:
            raise ValueError(text)
        return low, high

    parse.__name__ = "LOW,HIGH"
    return parse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", metavar="URL", help="a proxy")
    where.add_argument("--pinned", metavar="URL,URL", help="servers; agent i always uses server i mod n")
    where.add_argument("--round-robin", metavar="URL,URL", help="servers; each step goes to the next one")
    parser.add_argument("--servers", metavar="URL,URL", help="the vLLM servers behind --target, for their metrics")
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--salt", help="first words of every prompt (default: random, new for each run)")
    parser.add_argument("--warmup", type=float, default=20, help="seconds before the window")
    parser.add_argument("--seconds", type=float, default=60, help="length of the window")
    parser.add_argument("--stagger", type=float, default=5, help="seconds over which the agents start")
    parser.add_argument("--no-spread", action="store_true", help="all agents begin with their first step, not midway")
    parser.add_argument("--tools", type=pair(float), default=(0.2, 1.0), help="tool time, seconds (slow: 2,10)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a program")
    parser.add_argument("--system", type=int, default=400, help="tokens of the shared system prompt")
    parser.add_argument("--task", type=pair(int), default=(700, 950), help="tokens of the first user message")
    parser.add_argument("--tool-output", type=pair(int), default=(180, 220), help="tokens added by a tool")
    parser.add_argument("--reply", type=pair(int), default=(8, 30), help="tokens of an answer")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--no-id", action="store_true", help="send no program_id")
    parser.add_argument("--no-release", action="store_true", help="never say that a program has ended")
    parser.add_argument("--proxy-pid", type=int, help="report the CPU time of this process")
    parser.add_argument("--out", type=Path, help="write the report here too")
    args = parser.parse_args()
    if args.target and not args.servers:
        parser.error("--target needs --servers")
    if args.target:
        args.target = args.target.rstrip("/")
    return args


def main() -> None:
    args = arguments()
    result = asyncio.run(measure(args))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + os.linesep)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
