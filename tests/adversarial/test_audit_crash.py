"""T21: kill -9 at any moment loses nothing that was acknowledged and never breaks the chain."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from secure_dagu.audit import journal
from secure_dagu.audit.chain import read
from secure_dagu.audit.checkpoints import public_of, read_public
from secure_dagu.audit.verify import verify

ROUNDS = 8
WRITER = """
import asyncio, sys
from pathlib import Path
from secure_dagu.audit.events import Action, Event
from secure_dagu.audit.log import open_trail

async def main():
    async with open_trail(Path(sys.argv[1]), host="ci", source="coordinator", max_file=20_000) as trail:
        async def forever(name):
            for number in range(10**6):
                target = f"run:{sys.argv[2]}-{name}/{number}"
                await trail.record(Event(action=Action.TASK_DISPATCHED, target=target))
                sys.stdout.write(target + "\\n")
                sys.stdout.flush()
        async with asyncio.TaskGroup() as group:
            for name in range(5):
                group.create_task(forever(name))

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9_and_the_chain_stays_whole(tmp_path: Path) -> None:
    folder, dice, told = tmp_path / "audit", random.Random(7), set[str]()
    for number in range(ROUNDS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(dice.randrange(1, 60)):
            told.add(writer.stdout.readline().strip())
        writer.kill()
        told |= set(writer.stdout.read().split())
        writer.wait()
        writer.stdout.close()
    with journal.opened(folder, host="ci", source="coordinator"):
        pass
    report = verify(folder, key=read_public(public_of(folder)))
    assert report.bad is None
    kept = {read(line).target for path in journal.files_of(folder) for line in path.read_bytes().splitlines(True)}
    assert told <= kept
    assert len(told) > 10 * ROUNDS
