"""One active scheduler among several: who gets the lock, who loses it, who does nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from secure_dagu.scheduler.lock import Lock, holder

STALE_S = 0.4
HOLD = """
import sys, time
from pathlib import Path
from secure_dagu.scheduler.lock import Lock, holder
lock = Lock(Path(sys.argv[1]), holder(sys.argv[2]), stale_s=float(sys.argv[3]))
while not lock.take():
    time.sleep(0.02)
print("active", flush=True)
while lock.beat():
    time.sleep(0.05)
print("fenced", flush=True)
"""


def lock(folder: Path, name: str, *, stale_s: float = STALE_S, host: str = "") -> Lock:
    own = holder(name)
    return Lock(folder, replace(own, host=host, boot=host) if host else own, stale_s=stale_s)


def until(condition: Callable[[], bool], *, within_s: float = 10.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - began


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
    far, near = lock(tmp_path, "far", host="elsewhere"), lock(tmp_path, "near")
    assert far.take()
    began = time.monotonic()
    while time.monotonic() - began < 3 * STALE_S:
        assert far.beat()
        assert not near.take()
        time.sleep(0.02)
    assert STALE_S * 0.9 <= until(near.take) < STALE_S + 1
    assert not far.is_held()
    assert not far.beat()
    assert near.is_held()


def test_a_clock_that_is_wrong_on_one_host_changes_nothing(tmp_path: Path) -> None:
    far, near = lock(tmp_path, "far", host="elsewhere"), lock(tmp_path, "near")
    assert far.take()
    (term,) = tmp_path.glob("term-*.json")
    for wrong in (time.time() - 9e6, time.time() + 9e6):
        os.utime(term, (wrong, wrong))
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
def process(folder: Path, name: str, *, stale_s: float) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), name, str(stale_s)], stdout=subprocess.PIPE, text=True
    )
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
    standby = lock(tmp_path, "standby", stale_s=60)
    with process(tmp_path, "active", stale_s=60) as child:
        assert not standby.take()
        child.kill()
        assert until(standby.take) < 2


def test_a_paused_one_is_followed_after_the_threshold_and_finds_that_out_when_it_wakes_up(tmp_path: Path) -> None:
    standby = lock(tmp_path, "standby")
    with process(tmp_path, "paused", stale_s=STALE_S) as child:
        child.send_signal(signal.SIGSTOP)
        assert until(standby.take) >= STALE_S * 0.8
        child.send_signal(signal.SIGCONT)
        assert child.stdout is not None
        assert child.stdout.readline() == "fenced\n"
        assert standby.is_held()
