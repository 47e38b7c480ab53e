#!/usr/bin/env python3
"""Records what a real vLLM answers on each endpoint: record_answers.py URL > tests/samples/vllm-0.32-endpoints.json

One object for each request: path, body as it was sent, status, content type, and the answer byte for byte.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

WORDS = "self return import value index error config client server module string number object result " * 5
FIXED = {"model": "tiny", "temperature": 0, "seed": 1}
CHAT = {**FIXED, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 4}
TEXT = {**FIXED, "prompt": WORDS, "max_tokens": 4}
IDS = {**FIXED, "prompt": list(range(100, 180)), "max_tokens": 4}
RESPONSE = {"model": "tiny", "temperature": 0, "input": WORDS, "max_output_tokens": 4}
MESSAGE = {"model": "tiny", "temperature": 0, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 4}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
STREAM = {"stream": True}
BAD = {"model": "nope"}

CASES = [
    ("chat", "/v1/chat/completions", CHAT),
    ("chat, streamed", "/v1/chat/completions", CHAT | STREAM),
    ("chat, streamed with usage", "/v1/chat/completions", CHAT | USAGE),
    ("chat, unknown model", "/v1/chat/completions", CHAT | STREAM | BAD),
    ("text", "/v1/completions", TEXT),
    ("text, streamed", "/v1/completions", TEXT | STREAM),
    ("text, streamed with usage", "/v1/completions", TEXT | USAGE),
    ("text, unknown model", "/v1/completions", TEXT | BAD),
    ("token ids", "/v1/completions", IDS | {"return_token_ids": True}),
    ("token ids, streamed", "/v1/completions", IDS | STREAM | {"return_token_ids": True}),
    ("token ids, streamed with usage", "/v1/completions", IDS | USAGE | {"return_token_ids": True}),
    ("responses", "/v1/responses", RESPONSE),
    ("responses, streamed", "/v1/responses", RESPONSE | STREAM),
    ("responses, unknown model", "/v1/responses", RESPONSE | STREAM | BAD),
    ("messages", "/v1/messages", MESSAGE),
    ("messages, streamed", "/v1/messages", MESSAGE | STREAM),
    ("messages, unknown model", "/v1/messages", MESSAGE | BAD),
    ("messages, bad", "/v1/messages", MESSAGE | STREAM | {"max_tokens": -1}),
]


def ask(path: str, body: dict) -> tuple[int, str, str]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[1] + path, data, {"content-type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers["content-type"], answer.read().decode()


def main() -> None:
    out = []
    for name, path, body in CASES:
        ask(path, body)  # so that its prompt is in the cache
        status, kind, answer = ask(path, body)
        out.append({"name": name, "path": path, "request": body, "status": status, "type": kind, "answer": answer})
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
