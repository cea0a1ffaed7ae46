"""Look at workflows and runs as a person does: real processes, a home of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.system.conftest import Cluster
from tests.system.hosts import Host

FLOW = """\
params:
  - name: who
    default: world
steps:
  - id: greet
    run: echo "hello ${params.who}"
  - id: script
    depends: greet
    run: |
      echo from a script
      echo oops >&2
  - id: broken
    depends: script
    run: exit 3
  - id: never
    depends: broken
    run: echo never
handler_on:
  exit:
    run: echo bye
"""
CHILDREN = """\
steps:
  - id: call
    action: dag.run
    with: {dag: part, params: {n: "1"}}
---
name: part
params: [n: "0"]
steps:
  - id: inner
    run: echo "part ${params.n}"
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "flow.yaml").write_text(FLOW)
    (tmp_path / "dags" / "call.yaml").write_text(CHILDREN)
    return Host(tmp_path)


def without_paths(text: str, home: Path) -> str:
    """Return a summary with times and paths replaced by words."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = re.sub(re.escape(str(home)) + r"\S*\.(log|out|err)", r"PATH.\1", text)
    return re.sub(r"\((< 1s|\d+s)\)", "(TOOK)", text)


def test_a_run_is_started_and_looked_at(host: Host) -> None:
    begun = host.run("start", "-r", "r1", "flow", "--", "who=you")
    assert begun.returncode == 1
    assert without_paths(begun.stdout, host.home) == (
        """\
Failed - TIME

dag: flow (TOOK)
├─log: PATH.log
│
├─greet (TOOK) [succeeded]
│ ├─echo "hello you"
│ │
│ └─stdout: PATH.out
│     hello you
│\x20
├─script (TOOK) [succeeded]
│ ├─stdout: PATH.out
│ │   from a script
│ │
│ └─stderr: PATH.err
│     oops
│\x20
├─broken (TOOK) [failed]
│ ├─exit 3
│ │
│ └─error: exit status 3
│\x20
├─never [aborted]
│ └─echo never
│\x20
└─onExit (TOOK) [succeeded]
  ├─echo bye
  │
  └─stdout: PATH.out
      bye

Result: Failed
"""
    )
    assert host.run("status", "flow").stdout == begun.stdout
    assert host.ok("status", "flow.yaml", "-r", "r1") == begun.stdout
    assert host.ok("status", str(host.home / "dags" / "flow.yaml")) == begun.stdout
    (row,) = json.loads(host.ok("history", "flow", "-f", "json", "--status", "failed"))
    assert (row["dagRunId"], row["params"], row["status"], row["workerId"]) == ("r1", "who=you", "failed", "local")
    assert host.ok("ls", "-H").splitlines() == ["NAME  HISTORY", "call  -", "flow  failed"]
    log = re.search(r"log: (\S+)", begun.stdout)
    assert log is not None
    assert Path(log[1]).exists()
    host.ok("rm", "-H", "-f", "flow")
    assert not Path(log[1]).parent.exists()
    assert host.run("status", "flow").returncode == 1


def test_a_dry_run_shows_the_authored_text_and_leaves_nothing(host: Host) -> None:
    shown = host.ok("dry", "flow")
    assert '├─greet (< 1s) [succeeded]\n│ └─echo "hello ${params.who}"\n' in shown
    assert "log:" not in shown
    assert host.ok("history") == ""


def test_the_child_of_a_run_is_looked_at_by_its_id(host: Host) -> None:
    shown = host.run("start", "-r", "r1", "call").stdout
    found = re.search(r"─subdag: (\S+) \[n=\"?1\"?\]", shown)
    assert found is not None, shown
    child = host.ok("status", "call", "-r", "r1", "-s", found[1])
    assert "dag: part" in child
    assert "    part 1\n" in child


def test_a_run_that_was_killed_is_shown_as_failed(host: Host) -> None:
    (host.home / "dags" / "long.yaml").write_text("steps:\n  - id: a\n    run: echo ready; exec sleep 60\n")
    with host.service("start", "long", "-r", "r1") as running:
        running.wait_for("Step started")
        assert host.ok("ps").splitlines()[1].split()[:2] == ["long", "r1"]
        assert "Status: Running" in host.ok("status", "long")
        running.process.kill()
        running.wait()
        shown = host.ok("status", "long")
    assert "[failed]" in shown
    assert "Result: Failed" in shown
    assert host.ok("ps") == "No running processes\n"


def test_a_run_gets_what_its_profile_holds_and_its_secrets_are_masked(host: Host) -> None:
    (host.home / "dags" / "p.yaml").write_text('steps: [{id: a, run: "echo $REGION $TOKEN; echo ${#TOKEN}"}]\n')
    host.ok("profile", "create", "prod")
    host.ok("profile", "set-var", "prod", "REGION", "eu-north")
    host.ok("profile", "set-secret", "prod", "TOKEN", "canary-7")
    shown = host.ok("start", "p", "--profile", "prod")
    assert "    eu-north *******\n      8\n" in shown
    assert "canary-7" not in shown
    kept = [path for path in host.home.rglob("*") if path.is_file() and b"canary-7" in path.read_bytes()]
    assert kept == [host.home / "profiles" / "prod.json"]
    assert "does not exist" in host.run("start", "p", "--profile", "nope").stderr


def test_quiet_prints_nothing(host: Host) -> None:
    done = host.run("start", "-q", "call")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.ok("status", "-q", "call") == ""


def test_a_run_that_this_host_has_not_is_looked_up_at_the_coordinator(running: Cluster, tmp_path: Path) -> None:
    (running.host.home / "config.yaml").write_text(f"client: {{coordinators: ['{running.address}']}}\n")
    (tmp_path / "far.yaml").write_text("steps: [{id: a, run: echo far}]\n")
    running.host.ok("dispatch", str(tmp_path / "far.yaml"), "--run-id=r1", "--follow")
    assert "├─worker: w1" in running.host.ok("status", "far")
    assert json.loads(running.host.ok("status", "--json"))["runs"][0]["runId"] == "r1"
    running.host.ok("start", "-r", "here", str(tmp_path / "far.yaml"))
    assert "├─log: " in running.host.ok("status", "far")
    assert "├─worker: w1" in running.host.ok("status", "far", running.operator)
