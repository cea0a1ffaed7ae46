"""A run id names one folder, whoever makes it, however many at once, and wherever they are killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_dagu.errors import AlreadyExists, Unavailable
from secure_dagu.run.model import DagRunRef
from secure_dagu.store.records import Record, Records

RUN = DagRunRef("etl", "r1")
NOW = datetime.now(UTC)


def folders(folder: Path) -> list[Path]:
    """Return every folder of the run."""
    return [record.path for record in Records(folder).runs("etl") if record.run == RUN]


def id_file(folder: Path) -> Path:
    return folder / "etl" / "ids" / "r1"


def nothing(_folder: Path) -> None:
    """Nobody was here."""


def empty(folder: Path) -> None:
    """Killed before it had written where the folder is."""
    id_file(folder).parent.mkdir(parents=True)
    id_file(folder).touch()


def half(folder: Path) -> None:
    """Killed while it wrote that."""
    empty(folder)
    id_file(folder).write_text("dag-runs/2026/")


def no_folder(folder: Path) -> None:
    """Killed before it made the folder, or after it had removed it."""
    record = Records(folder).create(RUN, now=NOW - timedelta(hours=1))
    record.path.rmdir()


LEFT: tuple[Callable[[Path], None], ...] = (nothing, empty, half, no_folder)


@pytest.mark.parametrize("leave", LEFT)
@pytest.mark.parametrize("verb", ["create", "made"])
def test_what_a_killed_process_left_does_not_take_the_id(
    tmp_path: Path, leave: Callable[[Path], None], verb: str
) -> None:
    leave(tmp_path)
    records = Records(tmp_path)
    assert records.find_any(RUN) is None
    record: Record = getattr(records, verb)(RUN, now=NOW)
    assert records.find_any(RUN) == record
    assert folders(tmp_path) == [record.path]
    assert records.made(RUN, now=NOW + timedelta(minutes=1)) == record
    with pytest.raises(AlreadyExists):
        records.create(RUN, now=NOW + timedelta(minutes=1))


def test_who_removes_a_run_leaves_the_next_one_of_its_id_alone(tmp_path: Path) -> None:
    records = Records(tmp_path)
    old = records.create(RUN, now=NOW - timedelta(hours=1))
    old.path.rmdir()  # as far as the remover has come when somebody else makes it anew
    new = records.create(RUN, now=NOW)
    records.remove(old)
    assert records.find_any(RUN) == new
    records.remove(new)
    assert records.find_any(RUN) is None
    assert not id_file(tmp_path).exists()


@pytest.mark.parametrize("leave", LEFT)
def test_of_many_who_make_a_run_at_once_all_get_the_same_folder(tmp_path: Path, leave: Callable[[Path], None]) -> None:
    for turn in range(25):
        folder = tmp_path / str(turn)
        leave(folder)
        together, made = threading.Barrier(8), list[Record]()

        def make(
            number: int, folder: Path = folder, together: threading.Barrier = together, made: list[Record] = made
        ) -> None:
            records = Records(folder)
            together.wait()
            made.append(records.made(RUN, now=NOW + timedelta(seconds=number)))

        threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 8
        assert {record.path for record in made} == set(folders(folder))
        assert len(folders(folder)) == 1


def test_who_does_not_go_on_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create(RUN, now=NOW)
    code = (
        "import fcntl, sys, time\nhandle = open(sys.argv[1])\nfcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "etl" / ".ids.lock")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match="does not go on"):
            records.create(DagRunRef("etl", "r2"), now=NOW)
        child.kill()
    records.create(DagRunRef("etl", "r2"), now=NOW)


_WORK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from secure_dagu.run.model import DagRunRef
from secure_dagu.store.records import Records

records, run = Records(Path(sys.argv[1])), DagRunRef("etl", "r1")
print("ready", flush=True)
while True:
    records.remove(records.made(run, now=datetime.now(UTC)))
"""


def test_processes_that_are_killed_anywhere_leave_an_id_that_can_be_used(tmp_path: Path) -> None:
    dice = random.Random(5)
    for _ in range(12):
        children = [
            subprocess.Popen([sys.executable, "-c", _WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            threading.Event().wait(dice.uniform(0.0, 0.02))  # the point of the kill, not a wait for an event
            child.send_signal(signal.SIGKILL)
        for child in children:
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        records = Records(tmp_path)
        record = records.made(RUN, now=datetime.now(UTC) + timedelta(minutes=1))
        assert records.find_any(RUN) == record
        assert record.path in folders(tmp_path)
        records.remove(record)
        assert records.find_any(RUN) is None
