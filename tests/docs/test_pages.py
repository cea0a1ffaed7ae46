"""Documentation that says what is true now: generated pages, the README's commands, links between pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.system.conftest import Cluster
from tests.system.hosts import Host, free_port

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


def test_the_five_commands_of_the_readme_work_as_written(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    block = text[text.index("<!-- executed by tests/docs/test_pages.py -->") :]
    block = block[: block.index("\n```\n")]
    commands = re.findall(r"^\$ secure-dagu (.*)$", block, re.M)
    assert len(commands) == 5
    # The README's ports and home are those of a person's machine; here they are free ones, in a folder of this test.
    port, health, worker_health = free_port(), free_port(), free_port()
    host = Host(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")

    def words(line: str) -> list[str]:
        line = line.removesuffix(" &").replace("~/.dagu", str(tmp_path)).replace("localhost:50055", f"localhost:{port}")
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
