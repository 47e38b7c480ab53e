"""One agent run as a program: its name in each of its steps, and its release at the end, however it ends.

    with program("http://localhost:8300", "task-42") as step:
        client.chat.completions.create(model=..., messages=..., **step)  # any OpenAI client, sync or async
"""

import contextlib
import json
import urllib.request
import uuid


@contextlib.contextmanager
def program(gate, name="program", key="none"):
    program_id = f"{name}-{uuid.uuid4()}"  # a second run of the same task is another program
    try:
        yield {"extra_body": {"program_id": program_id}}
    finally:
        body = json.dumps({"program_id": program_id}).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        with contextlib.suppress(OSError):  # Thundergate forgets it by itself, later
            urllib.request.urlopen(urllib.request.Request(f"{gate}/programs/release", body, headers), timeout=10).close()
