"""One active scheduler among several: who gets the lock, who loses it, who does nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from secure_dagu.scheduler.lock import Lock, holder

STALE_S = 30.0
HOLD = """
import sys, time
from pathlib import Path
from secure_dagu.scheduler.lock import Lock, holder
lock = Lock(Path(sys.argv[1]), holder(sys.argv[2]), stale_s=60)
while not lock.take():
    time.sleep(0.02)
print("active", flush=True)
while lock.beat():
    time.sleep(0.05)
print("fenced", flush=True)
"""


class Clock:
    """A standby's own clock, which only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lock(folder: Path, name: str, *, host: str = "", clock: Clock | None = None) -> Lock:
    own = holder(name)
    own = replace(own, host=host, boot=host) if host else own
    return Lock(folder, own, stale_s=STALE_S, now=clock or Clock())


def test_the_first_one_is_active_and_the_second_takes_over_at_once_when_it_stops(tmp_path: Path) -> None:
    first, second = lock(tmp_path, "a"), lock(tmp_path, "b")
    assert first.take()
    assert first.take()
    assert not second.take()
    assert (found := first.active()) is not None
    assert found.id == "a"
    first.release()
    assert second.take()
    assert not first.is_held()
    assert not first.take()


def test_one_of_another_host_is_left_alone_while_it_speaks_and_followed_when_it_is_silent(tmp_path: Path) -> None:
    clock = Clock()
    far, near = lock(tmp_path, "far", host="elsewhere"), lock(tmp_path, "near", clock=clock)
    assert far.take()
    (term,) = tmp_path.glob("term-*.json")
    for _ in range(10):
        assert not near.take()
        clock.now_s += STALE_S - 0.5
        assert not near.take()
        said_ns = term.stat().st_mtime_ns
        while term.stat().st_mtime_ns == said_ns:  # the time of a file moves in steps of some milliseconds
            assert far.beat()
    assert not near.take()
    clock.now_s += STALE_S - 0.5
    assert not near.take()
    clock.now_s += 0.5
    assert near.take()
    assert not far.is_held()
    assert not far.beat()
    assert near.is_held()


def test_a_clock_that_is_wrong_on_one_host_changes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    far, near = lock(tmp_path, "far", host="elsewhere"), lock(tmp_path, "near", clock=clock)
    assert far.take()
    (term,) = tmp_path.glob("term-*.json")
    for wrong in (time.time() - 9e6, time.time() + 9e6):
        os.utime(term, (wrong, wrong))
        assert not near.take()
        clock.now_s += STALE_S - 0.5
        assert not near.take()
    assert far.beat()


def test_many_that_try_at_once_have_one_winner(tmp_path: Path) -> None:
    for term in range(30):
        tried = [lock(tmp_path, f"{term}-{number}", host=f"h{number}") for number in range(6)]
        winners = [one for one in tried if one.take()]
        assert len(winners) == 1
        winners[0].release()
    assert len(list(tmp_path.glob("term-*.json"))) == 1


def test_an_old_one_that_comes_late_gets_no_term_that_was_had_before(tmp_path: Path) -> None:
    late = lock(tmp_path, "late")
    for number in range(3):
        one = lock(tmp_path, f"x{number}")
        assert one.take()
        one.release()
    last = lock(tmp_path, "last")
    assert last.take()
    (tmp_path / "term-2.json").write_text("{}")  # it had looked before the others came
    assert last.is_held()
    assert not late.take()


@contextmanager
def process(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in a process of its own."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), name], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "active\n"
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_killed_one_of_this_host_is_followed_at_once(tmp_path: Path) -> None:
    standby = lock(tmp_path, "standby")  # its clock stands still, so no silence is long enough
    with process(tmp_path, "active") as child:
        assert not standby.take()
        child.kill()
        child.wait()
        assert standby.take()


def test_a_paused_one_is_followed_after_the_threshold_and_finds_that_out_when_it_wakes_up(tmp_path: Path) -> None:
    clock = Clock()
    standby = lock(tmp_path, "standby", clock=clock)
    with process(tmp_path, "paused") as child:
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert not standby.take()
        clock.now_s += STALE_S - 0.5
        assert not standby.take()
        clock.now_s += 0.5
        assert standby.take()
        child.send_signal(signal.SIGCONT)
        assert child.stdout is not None
        assert child.stdout.readline() == "fenced\n"
        assert standby.is_held()
