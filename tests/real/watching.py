"""What is watched beside the agents: is a server empty while a step waits, and vLLM's own counters."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from fleet import metric

POLL = 0.5  # seconds between two looks
LOOK_LIMIT = aiohttp.ClientTimeout(total=5)
METRICS_LIMIT = aiohttp.ClientTimeout(total=30)

SERVER_COUNTERS = {
    "queries": "vllm:prefix_cache_queries_total",
    "hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}


@dataclass
class Watch:
    """Sums over the looks of a window; an idle share is that of servers with nothing in flight."""

    looks: int = 0
    held: int = 0  # looks with at least one held step
    idle: float = 0.0
    idle_while_held: float = 0.0
    empty_while_held: int = 0  # looks with a held step and at least one server empty

    def note(self, loads: list[int], held: int) -> None:
        empty = sum(load == 0 for load in loads)
        self.looks += 1
        self.idle += empty / len(loads)
        if held:
            self.held += 1
            self.idle_while_held += empty / len(loads)
            self.empty_while_held += empty > 0


async def watch(http: aiohttp.ClientSession, servers: list[str], proxy: str | None, seen: Watch) -> None:
    """Looks until it is cancelled; a look that fails is left out."""
    while True:
        started = time.monotonic()
        try:
            loads = await asyncio.gather(*(in_flight(http, server) for server in servers))
            seen.note(loads, await held_steps(http, proxy) if proxy else 0)
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError):
            pass
        await asyncio.sleep(max(0.0, POLL - (time.monotonic() - started)))


async def in_flight(http: aiohttp.ClientSession, server: str) -> int:
    """vLLM's own count of requests inside it; its gauges lag by an iteration and more."""
    return int((await fetch_json(http, f"{server}/load"))["server_load"])


async def held_steps(http: aiohttp.ClientSession, proxy: str) -> int:
    """Programs with a step that waits in the proxy."""
    programs = await fetch_json(http, f"{proxy}/programs")
    return sum(p["state"] == "paused" and p["status"] == "reasoning" for p in programs.values())


async def fetch_json(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url, timeout=LOOK_LIMIT) as answer:
        return json.loads(await answer.read())


async def server_counters(http: aiohttp.ClientSession, servers: list[str]) -> list[dict[str, float]]:
    """SERVER_COUNTERS of each server."""
    found = []
    for server in servers:
        async with http.get(f"{server}/metrics", timeout=METRICS_LIMIT) as answer:
            page = await answer.text()
        found.append({key: metric(page, name) for key, name in SERVER_COUNTERS.items()})
    return found
