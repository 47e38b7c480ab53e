#!/usr/bin/env python3
"""mini-swe-agent, unchanged, through Thundergate: its litellm model class, its local environment.

Two runs. With scripted answers a program runs to its submission: well-formed tool calls, real
commands in a scratch directory. With the random model on real vLLM only the path is tested: every
answer is a format error and the step limit ends the program. Run by mini_swe_agent.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import HERE, REAL, Fleet, get, in_flight, post

# Read when the packages are imported: no banner, no set-up dialogue, no retries, no price look-ups.
os.environ.update(
    MSWEA_SILENT_STARTUP="1",
    MSWEA_CONFIGURED="true",
    MSWEA_COST_TRACKING="ignore_errors",
    MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT="1",
    MSWEA_GLOBAL_CONFIG_DIR=str(REAL / "mini-config"),
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    LITELLM_TELEMETRY="False",
)

import yaml
from minisweagent import package_dir
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

TASK = "Write sum.py, which prints the sum of the numbers from 0 to 10."
TOOL_FLAGS = "--enable-auto-tool-choice --tool-call-parser hermes"
TIMEOUT = 120  # seconds for one step
SCRIPT = HERE / "mini_swe_script.jsonl"


def solve(
    gate: str, program: str, scratch: Path, step_limit: int, **model_kwargs: Any
) -> tuple[dict[str, Any], DefaultAgent]:
    """One agent, one task; how it ended, and the agent with its whole conversation."""
    config = yaml.safe_load((package_dir / "config" / "mini.yaml").read_text())
    for key in ("mode", "confirm_exit"):  # of the interactive agent only
        config["agent"].pop(key, None)
    config["agent"].update(step_limit=step_limit, cost_limit=0, max_consecutive_format_errors=0)
    config["agent"]["output_path"] = REAL / "logs" / f"mini-{program}.traj.json"
    model = LitellmModel(
        model_name="openai/tiny",
        model_kwargs={
            **config["model"].pop("model_kwargs", {}),
            "api_base": f"{gate}/v1",
            "api_key": "none",
            "timeout": TIMEOUT,
            "extra_body": {"program_id": program},
            **model_kwargs,
        },
        **config["model"],
    )
    environment = LocalEnvironment(cwd=str(scratch), timeout=20, **config["environment"])
    agent = DefaultAgent(model, environment, **config["agent"])
    return agent.run(TASK), agent


def program(gate: str, name: str) -> dict[str, Any] | None:
    return json.loads(get(f"{gate}/programs")[1]).get(name)


def release(gate: str, name: str) -> None:
    answer = json.loads(post(f"{gate}/programs/release", {"program_id": name})[1])
    expect(answer == {"program_id": name, "released": True}, f"released: {answer}")
    expect(program(gate, name) is None, "the program is forgotten")


def expect(condition: bool, what: str) -> None:
    print(f"{'ok  ' if condition else 'FAIL'} {what}", flush=True)
    if not condition:
        sys.exit(1)


def scripted(fleet: Fleet) -> None:
    """A whole program: each scripted command runs, and the last one submits."""
    turns = len(SCRIPT.read_text().splitlines())
    gate, _ = fleet.gate([fleet.engine(SCRIPT)], name="thundergate-scripted")
    with tempfile.TemporaryDirectory() as scratch:
        result, agent = solve(gate, "scripted", Path(scratch), step_limit=turns + 1)
    expect(result.get("exit_status") == "Submitted", f"the program is submitted: {result.get('exit_status')}")
    expect(result.get("submission", "").strip() == "print(sum(range(11)))", "what is submitted is what it wrote")
    outputs = [m["extra"]["raw_output"].strip() for m in agent.messages if m.get("role") == "tool"]
    expect(outputs[1:] == ["", "45", "55"], f"its commands ran: {outputs[1:]}")
    seen = program(gate, "scripted") or {}
    expect(seen.get("step_count") == turns == agent.n_calls, f"{seen.get('step_count')} of {turns} steps were counted")
    release(gate, "scripted")


def random_model(fleet: Fleet, steps: int) -> None:
    """The path only: real vLLM, tools in every request, no answer that can be acted on."""
    [server] = fleet.vllm(1, 750, TOOL_FLAGS)
    gate, _ = fleet.gate([server])
    with tempfile.TemporaryDirectory() as scratch:
        result, agent = solve(gate, "random", Path(scratch), steps, max_tokens=24, temperature=0)
    expect(result.get("exit_status") == "LimitsExceeded", f"the step limit ends it: {result.get('exit_status')}")
    expect(agent.n_calls == steps, f"{agent.n_calls} steps were made")
    usage = last_usage(agent)
    seen = program(gate, "random") or {}
    expect(seen.get("step_count") == steps, f"{seen.get('step_count')} steps were counted")
    expect(seen.get("status") == "acting", f"the program is {seen.get('status')}")
    expect(seen.get("total_tokens") == usage["total_tokens"], f"{seen.get('total_tokens')} tokens, as vLLM said")
    expect(usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2, "the prefix was cached")
    expect(in_flight(server) == 0, "nothing is left in vLLM")
    release(gate, "random")


def last_usage(agent: DefaultAgent) -> dict[str, Any]:
    answers = [m["extra"]["response"] for m in agent.messages if "response" in m.get("extra", {})]
    return answers[-1]["usage"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=6, help="step limit with the random model")
    parser.add_argument("--only", choices=("scripted", "random"))
    args = parser.parse_args()
    with Fleet() as fleet:
        if args.only != "random":
            scripted(fleet)
        if args.only != "scripted":
            random_model(fleet, args.steps)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
