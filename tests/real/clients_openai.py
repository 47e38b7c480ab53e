#!/usr/bin/env python3
"""Real clients (the openai and anthropic packages, and raw HTTP) against Thundergate on real vLLM.

Two questions: does a client see through the proxy what it sees without it, byte for byte; and do the
things that the proxy adds (programs, its own errors, the abort of what nobody waits for) work.
Starts one vLLM server, the proxy, and the scripted engine. Run with the Python of the vLLM
environment; GATE names the proxy's binary.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import openai

from fleet import HERE, Fleet, get, in_flight, post, wait_idle

MODEL = "tiny"
PARALLEL = 32
ABORT_LIMIT = 5.0  # seconds until a left request must be gone from vLLM; it takes well under one
TOOL_FLAGS = "--enable-auto-tool-choice --tool-call-parser hermes"
MESSAGES: Any = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "List three words."}]
FIXED: Any = {"temperature": 0, "max_tokens": 12}
LONG: Any = {"temperature": 0, "max_tokens": 3000, "extra_body": {"ignore_eos": True, "min_tokens": 3000}}
TOO_LONG: Any = [{"role": "user", "content": "word " * 40_000}]
BASH: Any = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Runs a command",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


@dataclass
class Place:
    """Where a check runs: vLLM itself, the proxy before it, and the proxy before scripted answers."""

    direct: str
    gate: str
    scripted: str

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gate}/v1", api_key="none", max_retries=0, **options)


Check = Callable[[Place], None]
CHECKS: list[tuple[str, Check]] = []


def check(function: Check) -> Check:
    """Adds a function to the list of checks under its own name."""
    CHECKS.append((function.__name__.replace("_", " "), function))
    return function


def same(left: Any, right: Any, what: str) -> None:
    if left != right:
        raise AssertionError(f"{what} differs\n  one:   {str(left)[:1500]}\n  other: {str(right)[:1500]}")


def true(value: Any, what: str) -> None:
    if not value:
        raise AssertionError(what)


def until(condition: Callable[[], bool], limit: float, what: str) -> None:
    end = time.monotonic() + limit
    while not condition():
        true(time.monotonic() < end, f"not within {limit} s: {what}")
        time.sleep(0.05)


# === The same bytes with and without the proxy ===

# What two runs of one request may differ in.
VARYING = re.compile(rb'"(id|item_id|created|created_at|completed_at)":("[^"]*"|[\d.]+)')


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, **FIXED, **more}


def streamed(**more: Any) -> dict[str, Any]:
    return chat(stream=True, **more)


COMPLETION: Any = {"model": MODEL, "prompt": "Once upon", **FIXED}
RESPONSE: Any = {"model": MODEL, "input": "Say a word.", "temperature": 0, "max_output_tokens": 12}
MESSAGE: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}
SPELLED = (
    b'{ "model" : "tiny","temperature":0.0e0 , "max_tokens":1, "max_tokens":12,\n\t"messages":'
    b'[{"role":"user","content":"\\u00e9\\n\\"quoted\\" \xc3\xa9"}] }'
)

SAME_BYTES: dict[str, tuple[str, Any]] = {
    "a chat": ("/v1/chat/completions", chat()),
    "a chat with odd spelling": ("/v1/chat/completions", SPELLED),
    "a chat of 100 kB": ("/v1/chat/completions", chat(unknown_field="x" * 100_000)),
    "a chat of 3 MB": ("/v1/chat/completions", chat(unknown_field="x" * 3_000_000)),
    "a chat with tools": ("/v1/chat/completions", chat(tools=[BASH])),
    "a chat with logprobs": ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2)),
    "a stream": ("/v1/chat/completions", streamed()),
    "a stream with usage": ("/v1/chat/completions", streamed(stream_options={"include_usage": True})),
    "a stream with usage refused": ("/v1/chat/completions", streamed(stream_options={"include_usage": False})),
    "a stream with usage in each event": (
        "/v1/chat/completions",
        streamed(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    "a stream with tools": ("/v1/chat/completions", streamed(tools=[BASH])),
    "a completion": ("/v1/completions", COMPLETION),
    "a completion stream": ("/v1/completions", {**COMPLETION, "stream": True}),
    "a response": ("/v1/responses", RESPONSE),
    "a response stream": ("/v1/responses", {**RESPONSE, "stream": True}),
    "a message": ("/v1/messages", MESSAGE),
    "a message stream": ("/v1/messages", {**MESSAGE, "stream": True}),
    "an unknown model": ("/v1/chat/completions", {**chat(), "model": "nope"}),
    "an unknown model, streamed": ("/v1/chat/completions", {**streamed(), "model": "nope"}),
    "a prompt that is too long": ("/v1/chat/completions", chat(messages=TOO_LONG)),
    "missing messages": ("/v1/chat/completions", {"model": MODEL}),
    "a bad temperature": ("/v1/chat/completions", chat(temperature=-1)),
    "stream options without a stream": ("/v1/chat/completions", chat(stream_options={"include_usage": True})),
    "an embedding of a model that has none": ("/v1/embeddings", {"model": MODEL, "input": "hi"}),
    "tokenize": ("/tokenize", {"model": MODEL, "prompt": "one two three"}),
    "detokenize": ("/detokenize", {"model": MODEL, "tokens": [300, 301, 302]}),
}


def exchange(url: str, path: str, body: Any) -> tuple[int, bytes]:
    status, answer = post(url + path, body)
    return status, VARYING.sub(rb'"\1":0', answer)


def with_program(body: Any) -> Any:
    """What the proxy's client sends: the same and a program id, which vLLM must not see."""
    return {**body, "program_id": "bytes"} if isinstance(body, dict) else body


def compare_bytes(place: Place, path: str, body: Any) -> None:
    """The proxy's answer against vLLM's; vLLM may join two tokens in an event, so a stream has five tries."""
    tries = 5 if isinstance(body, dict) and body.get("stream") else 1
    exchange(place.direct, path, body)  # so that both find the prompt in the cache
    for left in reversed(range(tries)):
        want, got = exchange(place.direct, path, body), exchange(place.gate, path, with_program(body))
        if want == got or not left:
            same(want, got, "the answer")
            return


def add_byte_checks() -> None:
    for name, (path, body) in SAME_BYTES.items():
        CHECKS.append((f"same bytes: {name}", lambda place, path=path, body=body: compare_bytes(place, path, body)))


@check
def get_requests_pass(place: Place) -> None:
    same(get(f"{place.direct}/version"), get(f"{place.gate}/version"), "/version")
    models = [
        sorted(m["id"] for m in json.loads(get(f"{url}/v1/models")[1])["data"]) for url in (place.direct, place.gate)
    ]
    same(*models, "/v1/models")


# === The openai package ===


@check
def openai_lists_models(place: Place) -> None:
    same([model.id for model in place.client().models.list()], [MODEL], "models")


@check
def openai_answers_have_our_headers(place: Place) -> None:
    answer = place.client().chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, **FIXED)
    true(answer.headers.get("x-request-id"), "no x-request-id")
    same(answer.headers.get("x-thundergate-backend"), place.direct, "x-thundergate-backend")
    true(float(answer.headers["x-thundergate-held-ms"]) >= 0, "x-thundergate-held-ms")
    true(answer.parse().choices[0].message.content, "no content")


@check
def openai_streams_what_it_answers(place: Place) -> None:
    client = place.client()
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **FIXED)
    plain = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **FIXED))
    options = {"include_usage": True}
    counted = list(
        client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options=options, **FIXED)
    )
    for chunks in (plain, counted):
        pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        same("".join(pieces), whole.choices[0].message.content, "the streamed text")
    true(all(chunk.usage is None for chunk in plain), "usage that nobody asked for")
    true(all(chunk.choices for chunk in plain), "an event without choices that nobody asked for")
    same(plain[-1].choices[0].finish_reason, "length", "finish_reason")
    true(counted[-1].usage and whole.usage, "no usage")
    same(counted[-1].usage.total_tokens, whole.usage.total_tokens, "usage")


@check
def openai_keeps_a_program(place: Place) -> None:
    client, name = place.client(), "kept"
    for steps in (1, 2):
        whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"program_id": name}, **FIXED)
        entry = programs(place)[name]
        same((entry["status"], entry["state"], entry["step_count"]), ("acting", "active", steps), "the program")
        same(entry["total_tokens"], whole.usage and whole.usage.total_tokens, "its tokens")
        same(entry["backend"], place.direct, "its backend")
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_body={"program_id": name}, **FIXED
    ):
        true(chunk.choices, "an empty event")
    until(lambda: programs(place)[name]["step_count"] == 3, 2, "a streamed step is counted")
    same([release(place, name), release(place, name)], [True, False], "released")
    true(name not in programs(place), "the program is still there")


@check
def openai_identity_by_header(place: Place) -> None:
    headers = {"x-session-id": "by-header"}
    place.client().chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers=headers, **FIXED)
    true("by-header" in programs(place), "no program from x-session-id")
    true(release(place, "by-header"), "not released")


@check
def openai_raises_its_own_exceptions(place: Place) -> None:
    client = place.client()
    create = client.chat.completions.create
    raises(openai.NotFoundError, lambda: create(model="nope", messages=MESSAGES, **FIXED), "does not exist")
    raises(
        openai.NotFoundError, lambda: create(model="nope", messages=MESSAGES, stream=True, **FIXED), "does not exist"
    )
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=TOO_LONG, **FIXED), "maximum context length")
    raises(openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="hi"), "")
    bad = {"extra_body": {"program_id": {"not": "a name"}}}
    error = raises(openai.BadRequestError, lambda: create(model=MODEL, messages=MESSAGES, **FIXED, **bad), "")
    same(error.code, "invalid_program_id", "the code")


def raises(kind: type[openai.APIStatusError], call: Callable[[], Any], words: str) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        true(words in str(error), f"{words!r} is not in {error}")
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def a_stream_left_midway_is_aborted(place: Place) -> None:
    stream = place.client().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **long_step("left"))
    for chunk in itertools.islice(stream, 4):
        true(chunk.choices, "an empty event")
    same(in_flight(place.direct), 1, "requests in vLLM")
    stream.close()
    gone(place, "left")


@check
def an_answer_nobody_waits_for_is_aborted(place: Place) -> None:
    client = place.client(timeout=1.0)
    try:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, **long_step("waited"))
        raise AssertionError("no timeout")
    except openai.APITimeoutError:
        gone(place, "waited")


def long_step(program: str) -> dict[str, Any]:
    return {**LONG, "extra_body": {**LONG["extra_body"], "program_id": program}}


def gone(place: Place, program: str) -> None:
    until(lambda: in_flight(place.direct) == 0, ABORT_LIMIT, "vLLM is rid of the request")
    until(lambda: programs(place).get(program, {}).get("status") != "reasoning", ABORT_LIMIT, "the program is idle")
    release(place, program)


@check
def thirty_two_at_once(place: Place) -> None:
    asyncio.run(parallel(place))
    health = json.loads(get(f"{place.gate}/health")[1])
    same(health["reasoning_count"], 0, "programs in flight")
    same(sum(release(place, f"p{number}") for number in range(PARALLEL)), PARALLEL, "programs released")


async def parallel(place: Place) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.gate}/v1", api_key="none", max_retries=0) as client:
        counts = await asyncio.gather(*(parallel_step(client, number) for number in range(PARALLEL)))
    same(counts, [5 + number for number in range(PARALLEL)], "tokens of each answer")


async def parallel_step(client: openai.AsyncOpenAI, number: int) -> int:
    """One step with its own length, every second one streamed; the tokens that it was told it got."""
    tokens = 5 + number
    extra = {"program_id": f"p{number}", "ignore_eos": True, "min_tokens": tokens}
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": tokens, "extra_body": extra}
    if number % 2:
        stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask)
        usage = [chunk.usage async for chunk in stream][-1]
    else:
        usage = (await client.chat.completions.create(**ask)).usage
    return usage.completion_tokens if usage else 0


# === Tool calls, well formed ===


@check
def scripted_tool_calls_arrive(place: Place) -> None:
    client = openai.OpenAI(base_url=f"{place.scripted}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[BASH])
    same(whole.choices[0].finish_reason, "tool_calls", "finish_reason")
    calls = whole.choices[0].message.tool_calls or []
    same([call.function.name for call in calls], ["bash"], "the tool")
    true("command" in json.loads(calls[0].function.arguments), "no command")
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[BASH], stream=True))
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    same(
        "".join(d.function.arguments or "" for d in deltas if d.function),
        calls[0].function.arguments,
        "streamed arguments",
    )


# === The anthropic package ===


@check
def anthropic_messages(place: Place) -> None:
    client = anthropic.Anthropic(base_url=place.gate, api_key="none", max_retries=0)
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "messages": [{"role": "user", "content": "hi"}]}
    ask["extra_body"] = {"temperature": 0}
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        streamed_text = "".join(stream.text_stream)
    same(streamed_text, whole.content[0].text, "the streamed text")
    same(whole.usage.output_tokens, 12, "output tokens")


# === Helpers of the proxy's own API ===


def programs(place: Place) -> dict[str, Any]:
    return json.loads(get(f"{place.gate}/programs")[1])


def release(place: Place, name: str) -> bool:
    status, answer = post(f"{place.gate}/programs/release", {"program_id": name})
    same(status, 200, "status of a release")
    return bool(json.loads(answer)["released"])


# === Running them ===


def run_checks(place: Place, only: str) -> int:
    failed = 0
    for name, function in CHECKS:
        if only not in name:
            continue
        true(wait_idle([place.direct]), "vLLM is not idle")
        started = time.monotonic()
        try:
            function(place)
            print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception as error:  # a check may fail in any way; the others still run
            failed += 1
            print(f"FAIL {name}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="run the checks whose name has this in it")
    args = parser.parse_args()
    add_byte_checks()
    with Fleet() as fleet:
        [direct] = fleet.vllm(1, 750, TOOL_FLAGS)
        gate, _ = fleet.gate([direct])
        engine = fleet.engine(HERE / "mini_swe_script.jsonl")
        scripted, _ = fleet.gate([engine], name="thundergate-scripted")
        failed = run_checks(Place(direct, gate, scripted), args.only)
    if failed:
        sys.exit(f"{failed} failed")
    print("all passed")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
