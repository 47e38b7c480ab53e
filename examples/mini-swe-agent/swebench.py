#!/usr/bin/env python3
"""`mini-extra swebench`, unchanged, with each instance a program of Thundergate: its id in every step, its release at the end.

Same arguments; the gate is the `api_base` of the model's `model_kwargs`."""

import sys
from pathlib import Path

from minisweagent.run.benchmarks import swebench
from minisweagent.utils.serialize import recursive_merge

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from program import program

process_instance = swebench.process_instance


def process_program(instance, output_dir, config, progress_manager):
    kwargs = config["model"]["model_kwargs"]
    gate = kwargs["api_base"].removesuffix("/v1")
    with program(gate, instance["instance_id"], kwargs.get("api_key", "none")) as step:
        config = recursive_merge(config, {"model": {"model_kwargs": step}})
        process_instance(instance, output_dir, config, progress_manager)


swebench.process_instance = process_program
swebench.app()
