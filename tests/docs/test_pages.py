"""Documentation that says what is true now: generated pages, the README's commands, links between pages."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from secure_dagu.cli.main import COMMANDS, parse
from tests.local.command import Host as LocalHost
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import Host

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("pki/*.md"), *ROOT.glob("bench/*.md")])


def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def readme_commands(title: str) -> list[str]:
    """Return the commands of the executed block below a heading of the README."""
    section = (ROOT / "README.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    block = section.split("<!-- executed by tests/docs/test_pages.py -->")[1].split("\n```\n")[0]
    return re.findall(r"^\$ secure-dagu (.*)$", block, re.M)


def test_the_local_commands_of_the_readme_work_as_written(host: LocalHost) -> None:
    shutil.copytree(ROOT / "examples", host.folder / "examples")
    told = [host.ok(*words.split()) for words in readme_commands("Run a workflow on this host")]
    assert told[0] == ""
    assert "hello from" in told[1]
    assert told[1].endswith("Result: Succeeded\n")
    assert told[2] == told[1]
    assert "Succeeded" in told[3]


def test_the_guide_to_contexts_names_commands_that_there_are() -> None:
    page = (ROOT / "docs/how-to/contexts.md").read_text()
    lines = re.findall(r"^(secure-dagu [^#>\n<]*)", page, re.M)
    assert len(lines) > 12
    for line in lines:
        assert parse(shlex.split(line)[1:]).command in COMMANDS, line


def test_the_guide_to_local_runs_names_commands_that_there_are_and_begins_with_some_that_work(host: LocalHost) -> None:
    page = (ROOT / "docs/how-to/run-locally.md").read_text()
    lines = re.findall(r"(?:^|\| )(secure-dagu [^#>\n`]*)", page, re.M)
    assert len(lines) > 20
    for line in lines:
        assert parse(shlex.split(line)[1:]).command in COMMANDS, line
    host.file("retry.yaml", host.ok("example", "retry"))
    host.file("params.yaml", host.ok("example", "params"))
    works = ("validate retry", "dry retry", "start retry", "start params", "status retry", "history", "ls", "ps", "rm")
    for line in lines:
        words = shlex.split(line)[1:]
        if " ".join(words).startswith(works):
            host.ok(*words)


class NewHost(Host):
    """The machine of somebody who has set nothing: no DAGU_HOME, and no folder of ours yet."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "DAGU_HOME"}


def test_the_five_commands_of_the_readme_work_as_written(tmp_path: Path) -> None:
    commands = readme_commands("Five commands from nothing to a run over mutual TLS")
    assert len(commands) == 5
    # The README's ports are those of a person's machine; here they are free ones.
    port, health, worker_health = free_port(), free_port(), free_port()
    host = NewHost(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")

    def words(line: str) -> list[str]:
        line = line.removesuffix(" &").replace("localhost:50055", f"localhost:{port}")
        return line.replace("examples/", f"{tmp_path}/examples/").split()

    host.ok(*words(commands[0]))
    host.ok(*words(commands[1]))
    flags = [f"--coordinator.port={port}", f"--coordinator.health-port={health}"]
    with host.service(*words(commands[2]), *flags) as coordinator:
        coordinator.wait_for("coordinator.ready")
        with host.service(*words(commands[3]), f"--worker.health-port={worker_health}") as worker:
            worker.wait_for("coordinator.reached")
            told = host.ok(*words(commands[4]), f"--coordinators=localhost:{port}")
            assert "hello from" in told
            assert told.rstrip().endswith("Succeeded")


def test_the_metrics_page_names_what_a_coordinator_serves(cluster: Cluster) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    with cluster.coordinator(), urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics") as answer:
        served = set(re.findall(r"^# TYPE (\S+)", answer.read().decode(), re.M))
    ours = {name for name in served if name.startswith(("secure_dagu_", "dagu_", "grpc_"))}
    assert ours
    missing = sorted(name for name in ours if f"`{name}`" not in page)
    assert not missing


def test_the_page_of_measurements_tells_of_every_scenario() -> None:
    table = re.findall(r"^\| (`.*?`) \|", (ROOT / "bench" / "README.md").read_text(), re.M)
    told = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    listed = subprocess.run(
        [sys.executable, "-c", "from bench.__main__ import SCENARIOS; print(*SCENARIOS)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told == set(listed.stdout.split())
