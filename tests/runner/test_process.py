"""Child processes: their bytes, their end, and the end of everything that they started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from secure_dagu.run.model import RunStatus
from secure_dagu.runner import process
from tests.runner.harness import Seen, alive, pid_in, run, run_and_stop

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def marker() -> str:
    """Return a marker that no other test has, in this process or another: whoever has it is stopped together."""
    return f"test/{secrets.token_hex(8)}/"


@contextlib.contextmanager
def dead_afterwards(*files: Path, within_s: float = 0.0) -> Iterator[None]:
    """Check that the processes whose ids are in these files are gone, or go in time; end those that do not."""
    yield
    for pid in map(pid_in, files):
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            select.select([fd], [], [], within_s)
            os.close(fd)
    left = [pid for pid in map(pid_in, files) if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a process outlived its run"


async def call(*argv: str, cwd: Path) -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    async with asyncio.timeout(20):
        code = await process.run(
            argv, env=ENV, cwd=cwd, stdout=out.extend, stderr=err.extend, marker=marker(), stop=asyncio.Event(),
            stopping=process.Stopping(),
        )  # fmt: skip
    return code, bytes(out), bytes(err)


async def test_output_arrives_byte_for_byte(tmp_path: Path) -> None:
    data = os.urandom(8 * 2**20)
    (tmp_path / "data").write_bytes(data)
    assert await call("sh", "-c", "cat data; cat data >&2", cwd=tmp_path) == (0, data, data)


def test_children_work_under_uvloop_too(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(call("sh", "-c", "echo out; echo err >&2; exit 3", cwd=tmp_path)) == (3, b"out\n", b"err\n")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", -15)])
async def test_the_exit_is_told(tmp_path: Path, script: str, code: int) -> None:
    assert (await call("sh", "-c", script, cwd=tmp_path))[0] == code


@pytest.mark.parametrize("argv", [("/nonexistent",), ("no-such-program",), ("sh", "-c", "x\0y"), ("/etc/passwd",)])
async def test_what_cannot_be_started_says_so_without_its_arguments(tmp_path: Path, argv: tuple[str, ...]) -> None:
    with pytest.raises(process.CannotStart) as caught:
        await call(*argv, "secret-argument", cwd=tmp_path)
    assert "secret-argument" not in str(caught.value)


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    await call("true", cwd=tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    for argv in (("sh", "-c", "echo x; exit 3"), ("sh", "-c", "exec >&- 2>&-; true")):
        await call(*argv, cwd=tmp_path)
    with pytest.raises(process.CannotStart):
        await call("/nonexistent", cwd=tmp_path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await call("sleep", "60", cwd=tmp_path)
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_child_sees_only_its_standard_descriptors(tmp_path: Path) -> None:
    _, out, _ = await call("sh", "-c", "ls /proc/self/fd | wc -l; cat", cwd=tmp_path)
    assert out.strip() == b"4", "0, 1, 2 and the folder that ls reads; and stdin is at its end"


async def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        async with asyncio.timeout(10):
            await process.run(
                ["sh", "-c", "head -c 1000000 /dev/zero"], env=ENV, cwd=tmp_path, stdout=full, stderr=full,
                marker=marker(), stop=asyncio.Event(), stopping=process.Stopping(),
            )  # fmt: skip


TREES = {
    "in the group": "sleep 60 & echo $! > pid",
    "in a session of its own": "setsid sh -c 'echo $$ > pid; exec sleep 60' &",
    "orphaned in a session of its own": "(setsid sh -c 'echo $$ > pid; exec sleep 60' &)",
    "without its environment": "setsid env -i /bin/sh -c 'echo $$ > pid; exec /bin/sleep 60' &",
    "deaf to SIGTERM": "sh -c 'trap \"\" TERM; echo $$ > pid; while :; do sleep 1; done' &",
}


STARTS = """
max_clean_up_time_sec: 1
steps:
  - name: a
    run: |
      %s
      while ! test -s pid; do sleep 0.01; done
      %s
"""


@pytest.mark.parametrize("how", TREES)
async def test_a_stop_reaches_everybody_that_a_step_started(tmp_path: Path, how: str) -> None:
    script = f"{TREES[how]}\n      while ! test -s pid; do sleep 0.01; done\n      echo ready\n      sleep 60"
    with dead_afterwards(tmp_path / "work" / "pid"):
        seen = await run_and_stop(
            f"max_clean_up_time_sec: 1\nsteps:\n  - name: a\n    run: |\n      {script}", tmp_path
        )
    assert seen.status is RunStatus.ABORTED


# Orphaned and without its environment, nothing ties a process to its run any more: that takes a cgroup.
@pytest.mark.parametrize("how", [how for how in TREES if how != "without its environment"])
async def test_a_run_ends_with_what_its_steps_left_in_the_background(tmp_path: Path, how: str) -> None:
    with dead_afterwards(tmp_path / "work" / "pid"):
        seen = await run(STARTS % (TREES[how], "true"), tmp_path)
    assert seen.status is RunStatus.SUCCEEDED


async def test_ending_one_step_spares_the_one_whose_name_begins_alike(tmp_path: Path) -> None:
    """Processes are found by a marker with the step's name in it, and `step1` is the beginning of `step10`."""
    text = """
steps:
  - {name: step1, timeout_sec: 1, continue_on: failed, run: sleep 60}
  - {name: after, depends: step1, run: touch over}
  - {name: step10, run: "until test -e over; do sleep 0.02; done"}
"""
    seen = await run(text, tmp_path)
    assert seen.nodes() == {"step1": "failed", "after": "succeeded", "step10": "succeeded"}


async def test_ordinary_commands_are_gone_at_once_after_a_stop(tmp_path: Path) -> None:
    async def stopped_in_s() -> float:
        stop = asyncio.Event()
        stopped_at = 0.0

        def told(data: bytes) -> None:
            nonlocal stopped_at
            stopped_at = time.perf_counter()
            stop.set()

        code = await process.run(
            ["sh", "-c", "sleep 60 & echo ready; sleep 60"], env=ENV, cwd=tmp_path, stdout=told, stderr=None,
            marker=marker(), stop=stop, stopping=process.Stopping(),
        )  # fmt: skip
        assert code == -signal.SIGTERM
        return time.perf_counter() - stopped_at

    # Measured: 0.01 s. What we wait for is waited for each time; a busy machine is not busy each time.
    assert min([await stopped_in_s() for _ in range(8)]) < 1.0


async def test_a_grandchild_gets_its_time_to_clean_up(tmp_path: Path) -> None:
    """The shell dies of the signal at once; what it started is still entitled to its grace."""
    inner = "trap 'sleep 0.2; echo cleaned > done; exit' TERM; echo ready; while :; do sleep 0.02; done"
    await run_and_stop(f"""steps:\n  - name: a\n    run: |\n      sh -c "{inner}"\n      true""", tmp_path)
    assert (tmp_path / "work" / "done").read_text() == "cleaned\n"


async def test_a_detached_grandchild_does_not_hold_up_the_step(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        assert (await call("sh", "-c", "sleep 60 & echo $! > pid; echo hi", cwd=tmp_path))[1] == b"hi\n"
    os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)


def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def test_cancelling_kills(tmp_path: Path) -> None:
    with dead_afterwards(tmp_path / "pid"):
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(
                process.run(
                    ["sh", "-c", "trap '' TERM; echo $$ > pid; echo ready; while :; do sleep 1; done"], env=ENV,
                    cwd=tmp_path, stdout=lambda _: cancel(task), stderr=None, marker=marker(), stop=asyncio.Event(),
                    stopping=process.Stopping(),
                )
            )  # fmt: skip
        assert task.cancelled()


async def test_cancelling_a_run_kills_what_it_left_in_the_background_too(tmp_path: Path) -> None:
    seen = Seen()
    text = STARTS % (TREES["in a session of its own"], "echo ready; sleep 60")
    with dead_afterwards(tmp_path / "work" / "pid", within_s=5):  # killed at once, but nobody waits for it
        async with asyncio.TaskGroup() as group:
            task = group.create_task(run(text, tmp_path, seen=seen))
            seen.when("a", b"ready", lambda: cancel(task))
    assert task.cancelled()
    assert not seen.final_text


def test_more_steps_than_files_can_be_open_wait_for_one_another(tmp_path: Path) -> None:
    """With the limit of most hosts, a wide fan-out once failed with `Too many open files`."""
    steps = ", ".join(f"{{name: s{n}, run: ulimit -n}}" for n in range(60))
    program = (
        "import asyncio, pathlib, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (150, 180))\n"
        "from tests.runner.harness import run\n"
        "seen = asyncio.run(run(sys.argv[1], pathlib.Path(sys.argv[2])))\n"
        "print(set(seen.nodes().values()), seen.out('s1'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"steps: [{steps}]", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "{'succeeded'} 150\n\n", done.stderr
