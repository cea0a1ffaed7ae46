"""Limits of a run's processes: a cgroup where there is one, a warning where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_dagu.dag.model import Resources
from secure_dagu.errors import Unavailable
from secure_dagu.run.model import RunStatus
from secure_dagu.runner import limits, process
from tests.runner.harness import run


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """A folder that looks like a mount of cgroups: what is written there is all that can be seen without the kernel."""
    root = tmp_path / "cgroup"
    (root / "ours").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory")
    (root / "ours" / "cgroup.subtree_control").touch()
    return root


def test_a_group_has_the_limits_that_were_asked_for(cgroups: Path) -> None:
    resources = Resources(cpu_millicores=500, memory_bytes=2**20)
    folder = limits.make(resources, "r1", root=cgroups, own="/ours")
    assert folder == cgroups / "ours" / "secure-dagu-r1"
    assert (cgroups / "ours" / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "memory.max").read_text() == str(2**20)


def test_only_what_was_asked_for_is_limited(cgroups: Path) -> None:
    folder = limits.make(Resources(cpu_millicores=1), "r1", root=cgroups, own="/ours")
    assert (folder / "cpu.max").read_text() == "1000 100000"
    assert not (folder / "memory.max").exists()


def test_a_host_without_cgroups_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not enforced"):
        limits.make(Resources(cpu_millicores=1), "r1", root=tmp_path)


def test_a_group_that_is_not_ours_to_divide_leaves_nothing(cgroups: Path) -> None:
    (cgroups / "ours" / "cgroup.subtree_control").unlink()
    (cgroups / "ours" / "cgroup.subtree_control").mkdir()
    with pytest.raises(Unavailable, match="not enforced"):
        limits.make(Resources(memory_bytes=1), "r1", root=cgroups, own="/ours")
    assert not (cgroups / "ours" / "secure-dagu-r1").exists()


async def test_a_program_joins_before_it_starts_and_keeps_its_arguments(tmp_path: Path) -> None:
    import asyncio

    said: list[bytes] = []
    argv = limits.joining(tmp_path, ["/bin/sh", "-c", 'echo $$ "$@"', "sh", "a b", "$c"])
    code = await process.run(
        argv, env={}, cwd=tmp_path, stdout=said.append, stderr=None, marker="m", stop=asyncio.Event(),
        stopping=process.Stopping(),
    )  # fmt: skip
    assert code == 0
    pid, _, rest = b"".join(said).decode().partition(" ")
    assert rest == "a b $c\n"
    assert (tmp_path / "cgroup.procs").read_text() == f"{pid}\n"


async def test_a_run_goes_on_where_limits_cannot_be_enforced_and_says_so(tmp_path: Path) -> None:
    """Which of the two it is depends on the host; that a run is limited or says that it is not, does not."""
    text = "resources: {limits: {cpu: 1}}\nsteps: [{name: a, run: cat /proc/self/cgroup; echo fine}]\n"
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED
    *groups, last = seen.out("a").splitlines()
    assert last == "fine"
    told = [fields["err"] for level, message, fields in seen.lines if message == "Resource limits not enforced"]
    ours = [group for group in groups if "/secure-dagu-" in group]
    if not limits.CGROUPS.joinpath("cgroup.controllers").is_file():
        assert (told, ours) == (["this host has no cgroups of version 2"], [])
    elif told:  # they are not ours to divide
        assert told[0].startswith("cgroup: ")
        assert (len(told), ours) == (1, [])
    else:
        (group,) = ours
        assert not limits.CGROUPS.joinpath(group.partition("::")[2].lstrip("/")).exists()
