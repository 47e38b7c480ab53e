#!/usr/bin/env python3
"""Records what mini-swe-agent sends: tests/samples/mini-swe-agent.jsonl.

Unchanged agents, several at once, some on the same task, against a model that says something else each time, as a
sampled one does. Both ways of its litellm: chat completions and Anthropic's messages, with and without marks for a
prompt cache. One line a request: the agent that sent it, its path, its body, and the answer. A body is written as what
it shares with the one before it of the same agent (bytes at its start, bytes at its end) and what is between.

    MINI_VENV/bin/python tests/real/record_mini.py > tests/samples/mini-swe-agent.jsonl
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.update(
    MSWEA_SILENT_STARTUP="1",
    MSWEA_CONFIGURED="true",
    MSWEA_COST_TRACKING="ignore_errors",
    MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT="1",
    MSWEA_GLOBAL_CONFIG_DIR=tempfile.mkdtemp(),
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    LITELLM_TELEMETRY="False",
)

import yaml
from minisweagent import package_dir
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

TASKS = ("Fix the parser.", "Fix the parser.", "Fix the parser.", "Add a test.", "Add a test.", "Rename the module.")
COMMANDS = ("ls", "ls", "cat setup.py", "grep -rn parse .", "echo done > log", "wc -c log")
THOUGHTS = ("I look at what is here.", "I look at what is here.", "Let me see.", "", "Next: the \u201cparser\u201d \U0001f980.")
STEPS = 6
DICE = random.Random(1)
LOCK = threading.Lock()
LAST: dict[str, bytes] = {}
OUT, sys.stdout = sys.stdout, sys.stderr  # litellm prints


def shared(a: bytes, b: bytes) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def note(agent: str, path: str, body: bytes, answer: dict[str, Any]) -> None:
    with LOCK:
        last = LAST.get(agent, b"")
        front = shared(last, body)
        while front and body[front - 1] >= 0x80:
            front -= 1  # not within a character
        rest = body[front:]
        back = min(shared(last[front:][::-1], rest[::-1]), len(rest))
        while back and rest[len(rest) - back] & 0xC0 == 0x80:
            back -= 1
        middle = rest[: len(rest) - back].decode()
        LAST[agent] = body
        line = {"agent": agent, "path": path, "front": front, "middle": middle, "back": back, "answer": answer}
        print(json.dumps(line, ensure_ascii=False), file=OUT, flush=True)


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with LOCK:
            thought, command = DICE.choice(THOUGHTS), DICE.choice(COMMANDS)
            wrong, time_taken = DICE.random() < 0.1, DICE.uniform(0.05, 0.3)
        time.sleep(time_taken)
        if self.path.endswith("/messages"):
            agent = self.headers["x-api-key"]
            answer = self.messages(thought, command, wrong)
        else:
            agent = self.headers["authorization"].removeprefix("Bearer ")
            answer = self.chat(thought, command, wrong)
        # In the order in which they end: the next step of the agent comes after its answer.
        note(agent, self.path, body, answer)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chat(self, thought: str, command: str, wrong: bool) -> dict[str, Any]:
        function = {"name": "bash", "arguments": json.dumps({"command": command})}
        calls = [{"id": f"chatcmpl-tool-{uuid.uuid4().hex}", "type": "function", "function": function}]
        message = {"role": "assistant", "content": thought or None, "tool_calls": [] if wrong else calls}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if wrong else "tool_calls"}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [choice], "usage": usage}

    def messages(self, thought: str, command: str, wrong: bool) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": thought}] if thought or wrong else []
        if not wrong:
            name = f"chatcmpl-tool-{uuid.uuid4().hex}"
            content.append({"type": "tool_use", "id": name, "name": "bash", "input": {"command": command}})
        return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": "m",
                "content": content, "stop_reason": "end_turn" if wrong else "tool_use",
                "usage": {"input_tokens": 9, "output_tokens": 9}}

    def log_message(self, *_: Any) -> None:
        pass


def run(port: int, agent: str, provider: str, cache: str | None, task: str) -> None:
    config = yaml.safe_load((package_dir / "config" / "mini.yaml").read_text())
    for key in ("mode", "confirm_exit"):
        config["agent"].pop(key, None)
    config["agent"].update(step_limit=STEPS, cost_limit=0, max_consecutive_format_errors=0)
    base = f"http://127.0.0.1:{port}" + ("/v1" if provider == "openai" else "")
    kwargs = {**config["model"].pop("model_kwargs", {}), "api_base": base, "api_key": agent, "timeout": 60}
    config["model"].pop("set_cache_control", None)
    model = LitellmModel(model_name=f"{provider}/m", model_kwargs=kwargs, set_cache_control=cache, **config["model"])
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "setup.py").write_text("setup()\n")
        environment = LocalEnvironment(cwd=scratch, timeout=20, **config["environment"])
        result = DefaultAgent(model, environment, **config["agent"]).run(task)
    print(agent, result.get("exit_status"), file=sys.stderr)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ways = (("openai", None), ("openai", "default_end"), ("anthropic", "default_end"))
    agents = [(f"{provider}-{cache or 'plain'}-{n}", provider, cache, task)
              for provider, cache in ways for n, task in enumerate(TASKS)]
    with ThreadPoolExecutor(len(agents)) as pool:
        for one in [pool.submit(run, server.server_port, *agent) for agent in agents]:
            one.result()
    server.shutdown()


if __name__ == "__main__":
    main()
