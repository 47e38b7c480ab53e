#!/usr/bin/env python3
"""solve.py GATE MODEL TASKS WORKERS OUT: OpenHands on each task of a JSONL file, each a program of Thundergate.

A task is {"id", "prompt"}; it works in OUT/ID, which is made. Prints a line for each: how it ended."""

import concurrent.futures
import json
import sys
from pathlib import Path

from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.terminal import TerminalTool
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from program import program


def solve(gate, model, task, out):
    workspace = out / task["id"]
    workspace.mkdir(parents=True, exist_ok=True)
    with program(gate, task["id"]) as step:
        # A held step waits in the gate: be more patient than the default of five minutes.
        llm = LLM(
            model=f"openai/{model}",
            base_url=f"{gate}/v1",
            api_key=SecretStr("none"),
            timeout=7200,
            litellm_extra_body=step["extra_body"],
        )
        agent = Agent(llm=llm, tools=[Tool(name=TerminalTool.name), Tool(name=FileEditorTool.name)])
        conversation = Conversation(agent=agent, workspace=str(workspace), visualizer=None)
        try:
            conversation.send_message(task["prompt"])
            conversation.run()
            return conversation.state.execution_status.value
        finally:
            conversation.close()


gate, model, tasks, workers, out = sys.argv[1:]
tasks = [json.loads(line) for line in Path(tasks).read_text().splitlines() if line.strip()]
with concurrent.futures.ThreadPoolExecutor(int(workers)) as pool:
    ended = list(pool.map(lambda task: solve(gate, model, task, Path(out).resolve()), tasks))
for task, status in zip(tasks, ended):
    print(task["id"], status)
sys.exit(any(status != "finished" for status in ended))
