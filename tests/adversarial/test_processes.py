"""T29: a process of the same user looks for keys and secrets in ours: their memory, environment, files, core files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import needs
from tests.system.conftest import Cluster
from tests.system.hosts import PATIENCE_S, Host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl(2) are Linux's")
PLACES = ("environ", "mem", "fd/0", "maps")


def ordinary() -> tuple[str, ...]:
    """Return what a command runs under that is no more than its user: root loses what lets it look into any process."""
    if os.geteuid():
        return ()
    rights = "-sys_ptrace,-perfmon,-sys_admin,-checkpoint_restore,-setpcap"
    setpriv = needs.program("setpriv", package="util-linux")
    return (setpriv, f"--inh-caps={rights}", f"--bounding-set={rights}")


def readable(pid: int) -> list[str]:
    """Return what of a process another one can open."""
    looks = (
        "import os, sys\n"
        "for place in sys.argv[2:]:\n"
        "    try:\n"
        "        os.close(os.open(f'/proc/{sys.argv[1]}/{place}', os.O_RDONLY | os.O_NONBLOCK))\n"
        "    except PermissionError:\n"
        "        continue\n"
        "    print(place)\n"
    )
    command = [*ordinary(), sys.executable, "-c", looks, str(pid), *PLACES]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def core_limit(pid: int) -> list[str]:
    """Return how large a core file may be: the soft and the hard limit."""
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line]
    return line.split()[4:6]


LOOKS = """\
steps:
  - id: looks
    run: |
      if cat /proc/$PPID/environ >/dev/null 2>&1; then echo parent open; else echo parent closed; fi
      sleep 60 &
      if cat /proc/$!/environ >/dev/null 2>&1; then echo own open; else echo own closed; fi
      kill $!
"""


@pytest.fixture
def looks(tmp_path: Path) -> Path:
    """Return a workflow whose step looks into the process that runs it, and into one of its own."""
    file = tmp_path / "looks.yaml"
    file.write_text(LOOKS)
    return file


def test_what_services_know_is_closed_to_other_processes_of_their_user(tmp_path: Path, looks: Path) -> None:
    with subprocess.Popen([*ordinary(), "/bin/sleep", "600"], stdin=subprocess.DEVNULL) as plain:
        while Path(f"/proc/{plain.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        seen = readable(plain.pid)
        plain.kill()
    assert seen == list(PLACES), "else this test could not fail"
    cluster = Cluster(tmp_path, under=ordinary())
    with cluster.coordinator() as coordinator, cluster.worker("w1") as worker:
        for service in (coordinator, worker):
            assert readable(service.process.pid) == []
            assert core_limit(service.process.pid) == ["0", "0"]
        told = cluster.host.ok("dispatch", str(looks), cluster.operator, "--follow")
    assert "parent closed" in told
    assert "own open" in told, "else this test could not fail"


@pytest.mark.parametrize("how", ["start", "enqueue"])
def test_a_step_cannot_read_the_local_process_that_runs_it(tmp_path: Path, looks: Path, how: str) -> None:
    host = Host(tmp_path, ordinary())
    if how == "start":
        host.ok("start", "--run-id=r1", str(looks))
    else:
        with host.service("scheduler", "--scheduler.port=0") as scheduler:
            scheduler.wait_for("scheduler.ready")
            host.ok("enqueue", "--run-id=r1", str(looks))
            deadline = time.monotonic() + PATIENCE_S
            while '"succeeded"' not in host.run("status", "--run-id=r1", "looks", "--json").stdout:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    (log,) = (tmp_path / "logs").rglob("looks*.out")
    assert log.read_text().splitlines() == ["parent closed", "own open"]
