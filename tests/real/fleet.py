"""Starts and stops the processes of a real test (vLLM servers, proxies) and asks them simple things.

Standard library only: every virtual environment of these tests can import it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REAL = Path(os.environ.get("REAL_DIR", ROOT / "target" / "real"))
BLOCK = 32  # tokens; what serve.sh asks vLLM for
START_LIMIT = 300.0  # seconds for a cold start of vLLM; 25 s when the machine is quiet
STOP_LIMIT = 20.0  # seconds between SIGTERM and SIGKILL

_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """In the child: a SIGKILLed parent must not leave servers behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One child in a process group of its own, its output in a log file."""

    def __init__(self, name: str, argv: list[str], log: Path, env: dict[str, str] | None = None):
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out: IO[bytes] = log.open("wb")
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        self.pid = self._child.pid

    def alive(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> None:
        """SIGTERM to the process, then SIGKILL to what is left of its group."""
        if self.alive():
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_LIMIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        self._out.close()

    def tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:])


class Fleet:
    """A context that ends every process it started, whatever happens (Ctrl-C and SIGTERM too)."""

    def __init__(self, logs: Path | None = None):
        self._logs = logs or REAL / "logs"
        self._running: list[Process] = []

    def __enter__(self) -> Fleet:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        for process in reversed(self._running):
            process.stop()
        self._running.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> Process:
        process = Process(name, argv, self._logs / f"{name}.log", env)
        self._running.append(process)
        return process

    def stop(self, process: Process) -> None:
        process.stop()
        self._running.remove(process)

    def vllm(self, count: int, blocks: int, extra: str = "") -> list[str]:
        """Starts `count` servers at once and waits for all; their URLs."""
        cores = os.cpu_count() or 1
        started = []
        for index in range(count):
            port = free_port()
            env = {"CORE": str(index % cores), "EXTRA": extra}
            argv = [str(HERE / "serve.sh"), str(port), str(blocks)]
            started.append((f"http://127.0.0.1:{port}", self.start(f"vllm-{index}", argv, env)))
        for url, process in started:
            wait_healthy(url, process, START_LIMIT)
        return [url for url, _ in started]

    def gate(self, backends: list[str], *flags: str, name: str = "thundergate") -> tuple[str, Process]:
        """Starts the proxy under test in front of `backends`."""
        return self.proxy(name, [gate_path(), *flags], backends)

    def proxy(self, name: str, argv: list[str], backends: list[str]) -> tuple[str, Process]:
        """Starts any proxy that takes ThunderAgent's flags."""
        port = free_port()
        argv = [*argv, "--host", "127.0.0.1", "--port", str(port), "--backends", ",".join(backends)]
        process = self.start(name, argv)
        url = f"http://127.0.0.1:{port}"
        wait_healthy(url, process, 60.0)
        wait_ready(url, 30.0)
        return url, process

    def engine(self, script: Path, name: str = "scripted") -> str:
        """Starts the simulated engine with scripted answers."""
        port = free_port()
        argv = [gate_path(), "engine", "--port", str(port), "--model", "tiny", "--script", str(script)]
        url = f"http://127.0.0.1:{port}"
        wait_healthy(url, self.start(name, argv), 60.0)
        return url


def gate_path() -> str:
    """The proxy's binary: `GATE` in the environment, else the release build."""
    path = os.environ.get("GATE", str(ROOT / "target" / "release" / "thundergate"))
    if not os.access(path, os.X_OK):
        sys.exit(f"{path} is not there: cargo build --release, or set GATE")
    return path


def thunderagent_argv(*flags: str) -> list[str] | None:
    """The baseline's command from `THUNDERAGENT_CMD`; none when it is not set."""
    command = os.environ.get("THUNDERAGENT_CMD", "").strip()
    return [*shlex.split(command), *flags] if command else None


def wait_healthy(url: str, process: Process, limit: float) -> None:
    """Returns when `/health` answers 200; exits with the log's end when it never does."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if not process.alive():
            sys.exit(f"{process.name} ended at its start:\n{process.tail()}")
        try:
            if get(f"{url}/health", 2.0)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"{process.name} was not healthy after {limit:.0f} s:\n{process.tail()}")


def wait_ready(url: str, limit: float) -> None:
    """Waits until `/readyz` (where there is one) says that a backend is usable."""
    end = time.monotonic() + limit
    while get(f"{url}/readyz")[0] == 503:
        if time.monotonic() > end:
            sys.exit(f"{url} has no usable backend after {limit:.0f} s")
        time.sleep(0.1)


def get(url: str, timeout: float = 10.0) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


def post(url: str, body: object, timeout: float = 120.0) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


def in_flight(server: str) -> int:
    """Requests inside a vLLM server, from its own load tracking (exact, unlike the gauges)."""
    return int(json.loads(get(f"{server}/load")[1])["server_load"])


def wait_idle(servers: list[str], limit: float = 60.0) -> bool:
    """True when no server has a request in flight before the limit."""
    end = time.monotonic() + limit
    while any(in_flight(server) for server in servers):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def metric(text: str, name: str) -> float:
    """The sum of a Prometheus sample over its label sets; 0 when it is not there."""
    pattern = rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$"
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
