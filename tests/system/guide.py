"""Follow a guide: its blocks are run as they are written, on the machines that they name.

What a block is for stands behind its language: `on=worker` runs it on that machine, `keeps-running` leaves it running,
`file=PATH` writes it there instead, `shows` compares it with what that machine has printed (… stands for anything),
`fails=CODE` expects that exit code. What is left running a second time is restarted. Blocks with `way=NAME` are
alternatives: where another one begins, what the one before left running is ended.
LINE in a command is what `secure-dagu pki token` printed, and TOKEN what stands before its @; PUBLIC-KEY in a file is
the key that was printed last.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.system.hosts import PATIENCE_S, Service
from tests.system.lab import Machine

NETWORKS = Path(__file__).resolve().parents[2] / "docs/how-to/networks"
_BLOCK = re.compile(r"^```(\w+)((?: [\w./~=-]+)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_READY = (("secure-dagu coordinator", "coordinator.ready"), ("secure-dagu worker", "coordinator.reached"))


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    language: str
    words: Mapping[str, str]
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that name a machine, in order."""
    found = []
    for language, words, text in _BLOCK.findall(page.read_text()):
        told = dict(word.partition("=")[::2] for word in words.split())
        if "on" in told:
            found.append(Block(language, told, text))
    return found


@dataclass
class Kept:
    """A command that was left running."""

    machine: str
    script: str
    way: str
    service: Service
    stack: ExitStack


@dataclass
class Guide:
    """A page being followed."""

    machines: Mapping[str, Machine]
    kept: list[Kept] = field(default_factory=list)
    printed: dict[str, str] = field(default_factory=dict)
    line: str = ""
    """The last line that `pki token` printed."""
    key: str = ""
    """The last public key of SSH that was printed."""

    def follow(
        self, page: Path, *, did: Callable[[Block], None] | None = None, tried: Callable[[str], None] | None = None
    ) -> None:
        """Run every block; `did` is called after each, `tried` with each alternative while it still runs."""
        found = blocks(page)
        assert found, page
        ways = [block.words.get("way", "") for block in found]
        for block, way, following in zip(found, ways, [*ways[1:], ""], strict=True):
            self._run(block)
            if did is not None:
                did(block)
            if way != following and way:
                if tried is not None:
                    tried(way)
                self._end(lambda kept, way=way: kept.way == way)  # type: ignore[misc]

    def close(self) -> None:
        """End what was left running, the last one first."""
        self._end(lambda _: True)

    def service(self, machine: str, command: str) -> Service:
        """Return what runs on a machine and begins with `command`."""
        return next(kept.service for kept in self.kept if kept.machine == machine and kept.script.startswith(command))

    def said(self, name: str) -> str:
        """Return everything that a machine printed."""
        running = "\n".join(kept.service.text for kept in self.kept if kept.machine == name)
        return f"{self.printed.get(name, '')}\n{running}"

    def _run(self, block: Block) -> None:
        name = block.words["on"]
        if "file" in block.words:
            self.machines[name].file(block.words["file"], block.text.replace("PUBLIC-KEY", self.key))
        elif "shows" in block.words:
            self._compare(name, block.text)
        elif "keeps-running" in block.words:
            self._keep(name, block.text.strip(), block.words.get("way", ""))
        else:
            self._type(name, block)

    def _type(self, name: str, block: Block) -> None:
        script = re.sub(r"\bTOKEN@", f"{self.line.partition('@')[0]}@", re.sub(r"\bLINE\b", self.line, block.text))
        done = self.machines[name].sh(script)
        self.printed[name] = self.printed.get(name, "") + done.stdout + done.stderr
        wanted = int(block.words.get("fails", "0"))
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == wanted, f"{name}: exit {done.returncode}\n{script}\n{said}\n{self.said(name)}"
        self.key = next((line for line in done.stdout.splitlines() if line.startswith("ssh-")), self.key)
        if "secure-dagu pki token" in script:
            self.line = done.stdout.split()[-1]

    def _keep(self, name: str, script: str, way: str) -> None:
        self._end(lambda kept: (kept.machine, kept.script) == (name, script))
        machine, stack = self.machines[name], ExitStack()
        before = machine.listening()
        service = stack.enter_context(machine.stays(script))
        self.kept.append(Kept(name, script, way, service, stack))
        ready = next((line for command, line in _READY if script.startswith(command)), None)
        if ready is not None:
            service.wait_for(ready)
            return
        until(lambda: machine.listening() > before or service.process.poll() is not None)
        assert service.process.poll() is None, service.text

    def _end(self, which: Callable[[Kept], bool]) -> None:
        for kept in reversed([one for one in self.kept if which(one)]):
            kept.stack.close()
            self.kept.remove(kept)
            self.printed[kept.machine] = f"{self.printed.get(kept.machine, '')}{kept.service.text}\n"

    def _compare(self, name: str, text: str) -> None:
        for line in text.splitlines():
            wanted = re.compile("^" + ".*".join(map(re.escape, line.split("…"))) + "$", re.MULTILINE)
            try:
                until(partial(self._shows, name, wanted))
            except AssertionError:
                raise AssertionError(f"{name} did not show {line!r}, but:\n{self.said(name)}") from None

    def _shows(self, name: str, wanted: re.Pattern[str]) -> bool:
        return wanted.search(self.said(name)) is not None


@contextmanager
def guide(**machines: Machine) -> Iterator[Guide]:
    """Follow pages on these machines; what keeps running is ended afterwards."""
    followed = Guide(machines)
    try:
        yield followed
    finally:
        followed.close()


def until(holds: Callable[[], bool]) -> None:
    """Ask again and again until something holds."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it did not come to hold"
        threading.Event().wait(0.05)
