"""The main job as a story: a CA, a coordinator, two workers, a real run over mutual TLS, and a stranger turned away.

Run it with `make quickstart`. Everything lives in a temporary folder and nothing is left running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = Path(sys.executable).with_name("secure-dagu")
DEADLINE_S = 20.0
LABELS = {"etl-1": "pool=etl", "gpu-1": "gpu=true"}
"""Worker to the labels that its certificate grants and that it claims."""


def say(text: str) -> None:
    """Print one paragraph of the story."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n## {text}", flush=True)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(home: Path, *words: str, show: bool = True) -> str:
    """Run one command as a person would, with `home` as the host's DAGU_HOME; return what it printed."""
    print("$ secure-dagu " + " ".join(words), flush=True)
    done = subprocess.run([PROGRAM, *words], env=environment(home), stdout=subprocess.PIPE, text=True, check=False)
    if show and done.stdout:
        print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise SystemExit(f"the command above ended with exit code {done.returncode}")
    return done.stdout


def follow(home: Path, *words: str) -> None:
    """Run one command whose output is meant to be seen live."""
    print("$ secure-dagu " + " ".join(words), flush=True)
    done = subprocess.run([PROGRAM, *words], env=environment(home), check=False)
    if done.returncode != 0:
        raise SystemExit(f"the command above ended with exit code {done.returncode}")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of one pretended host."""
    return {"PATH": os.pathsep.join(os.get_exec_path()), "HOME": str(home), "DAGU_HOME": str(home), "LANG": "C.UTF-8"}


@contextmanager
def service(home: Path, name: str, *words: str) -> Iterator[Path]:
    """Run a service in the background, its log in `home`; end it with SIGTERM and wait."""
    log = home / f"{name}.log"
    print("$ secure-dagu " + " ".join(words) + "   &", flush=True)
    with log.open("wb") as sink:
        process = subprocess.Popen([PROGRAM, *words], env=environment(home), stdout=sink, stderr=sink)
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=DEADLINE_S)
        print(f"{name} stopped, exit code {code}", flush=True)


def wait_healthy(port: int, log: Path) -> None:
    """Wait until `/health` answers 200."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.05)
    raise SystemExit(f"not healthy after {DEADLINE_S:.0f} s; its log says:\n{log.read_text()}")


def wait_for_line(log: Path, word: str) -> str:
    """Return the newest line of a log that has `word`, as soon as there is one."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        found = [line for line in log.read_text().splitlines() if word in line]
        if found:
            return found[-1]
        time.sleep(0.05)
    return "(nothing)"


def knock_without_certificate(port: int, ca: Path) -> str:
    """Do what a stranger would: a correct handshake, but no certificate. Return what the coordinator answers."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("localhost", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return "answered" if secure.recv(64) else "closed without a word"
    except ssl.SSLError as refusal:
        return refusal.reason or str(refusal)


def main() -> int:
    """Tell the story."""
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="secure-dagu-quickstart-"))
    hosts = {name: scratch / name for name in ("coordinator", "etl-1", "gpu-1")}
    for folder in hosts.values():
        folder.mkdir()
    port, health, etl_health, gpu_health = (free_port() for _ in range(4))
    here = hosts["coordinator"]
    print(f"Three hosts, played by three folders in {scratch}")

    say("1. The coordinator's host makes a CA, its own certificate, and one for the operator")
    run(here, "pki", "init", "--advertise", "localhost")

    say("2. Each worker gets a certificate bound to its name and labels (the files travel by your usual safe way)")
    for name, labels in LABELS.items():
        run(here, "pki", "issue", "worker", name, "--labels", labels, "--out", str(hosts[name] / "pki"))

    with ExitStack() as stack:
        say("3. The coordinator and two labelled workers start; every connection is TLS 1.3 with both sides proven")
        log = stack.enter_context(
            service(
                here,
                "coordinator",
                "coordinator",
                f"--coordinator.port={port}",
                "--coordinator.advertise=localhost",
                f"--coordinator.health-port={health}",
            )
        )
        wait_healthy(health, log)
        for name, its_health in (("etl-1", etl_health), ("gpu-1", gpu_health)):
            its_log = stack.enter_context(
                service(
                    hosts[name],
                    name,
                    "worker",
                    f"--worker.id={name}",
                    f"--worker.coordinators=localhost:{port}",
                    f"--worker.labels={LABELS[name]}",
                    f"--worker.health-port={its_health}",
                )
            )
            wait_healthy(its_health, its_log)
        operator = f"--coordinators=localhost:{port}"
        run(here, "workers", operator)

        say("4. A year of orders becomes a report: three steps in parallel, a forecast pinned to gpu=true, an artifact")
        shutil.copytree(HERE / "sales", scratch / "sales")
        follow(here, "dispatch", str(scratch / "sales" / "sales.yaml"), operator, "--run-id=quickstart", "--follow")

        say("5. What it left behind: status, log and artifacts come back over the same proven connection")
        status = json.loads(run(here, "status", "sales", "-r", "quickstart", operator, "--json", show=False))
        for node in status["run"]["steps"]:
            print(f"  {node['name']:<12} {node['status']}")
        run(here, "logs", "sales", "-r", "quickstart", "--step=check", "--stderr", operator)
        run(here, "artifacts", "sales", "-r", "quickstart", f"--out={scratch / 'artifacts'}", operator)
        report = scratch / "artifacts" / "report.md"
        print("".join(f"  | {line}\n" for line in report.read_text().splitlines()[:9]), end="")

        say("6. A stranger without a certificate knocks")
        print(f"the stranger reads:     {knock_without_certificate(port, here / 'pki' / 'ca.crt')}")
        print(f"the coordinator logged: {wait_for_line(log, 'link.refused')}")

        say("7. Everything stops; workers drain first")
    took = time.monotonic() - began
    say(f"Done in {took:.1f} s")
    print(f"report     {report}")
    print(f"run logs   {here / 'logs' / 'sales' / 'quickstart'}")
    print(f"metrics    while it runs: http://127.0.0.1:{health}/metrics")
    print(f"all files  {scratch}  (delete it when you have seen enough)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
