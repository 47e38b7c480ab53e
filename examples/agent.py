#!/usr/bin/env python3
"""agent.py GATE MODEL PROGRAMS WORKERS: the workload of DRY=1 where no agent is installed. Needs nothing but Python.

Each program asks for steps until the model calls no tool, or submits; the tool's output is a line."""

import concurrent.futures
import json
import sys
import urllib.request

from program import program

TOOL = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
LAST = ("COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT", '"finish"')


def ask(gate, model, messages, extra):
    body = json.dumps({"model": model, "messages": messages, "tools": [TOOL], **extra}).encode()
    request = urllib.request.Request(f"{gate}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]


def run(gate, model, name):
    messages = [{"role": "user", "content": f"This is {name}."}]
    with program(gate, name) as step:
        for count in range(1, 50):
            message = ask(gate, model, messages, step["extra_body"])
            calls = message.get("tool_calls") or []
            if not calls or any(word in json.dumps(calls) for word in LAST):
                return count
            messages.append(message)
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
    raise RuntimeError(f"{name} does not end")


gate, model, programs, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    steps = list(pool.map(lambda n: run(gate, model, f"task-{n}"), range(programs)))
print(f"{programs} programs, {sum(steps)} steps")
