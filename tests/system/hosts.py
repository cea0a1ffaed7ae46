"""Pretended hosts: a folder as DAGU_HOME, real commands, services whose output can be waited for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("secure-dagu")
PATIENCE_S = 60.0


class Service:
    """A running service: its lines can be waited for, it is ended with a signal."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def text(self) -> str:
        """Return everything printed so far."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, *, timeout_s: float = PATIENCE_S) -> str:
        """Wait until a line matches `pattern`; return it.

        Raises:
            AssertionError: it did not come in time, or the service ended without it.
        """
        until = time.monotonic() + timeout_s
        read = 0
        with self._news:
            while True:
                for line in self.lines[read:]:
                    if re.search(pattern, line):
                        return line
                read = len(self.lines)
                left = until - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"no line matches {pattern!r}; it printed:\n{self.text}")
                self._news.wait(min(left, 0.5))

    def at(self, pattern: str) -> datetime:
        """Wait until a line matches `pattern`; return its own time, which does not count how late we read it."""
        line = self.wait_for(pattern)
        told = re.match(r"time=(\S+)", line)
        assert told is not None, line
        return datetime.fromisoformat(told[1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only."""
        self.process.send_signal(number)

    def wait(self, *, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(timeout=timeout_s)
        self._reader.join(timeout=5)
        return code

    def stop(self) -> int:
        """End with SIGTERM and wait; return the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()


@dataclass(frozen=True)
class Host:
    """One machine: a home of its own."""

    home: Path
    under: tuple[str, ...] = ()
    """What every command runs under, such as `setpriv` and its flags."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment that commands on this host see."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DAGU_HOME": str(self.home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def run(
        self, *words: str, stdin: str | None = None, timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `stdin` is what it is told."""
        return subprocess.run(
            [*self.under, str(PROGRAM), *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *words: str, timeout_s: float = PATIENCE_S) -> str:
        """Run a command that must succeed; return its standard output."""
        done = self.run(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def service(self, *words: str) -> Iterator[Service]:
        """Run a service; whatever is still running at the end is killed, by its own id."""
        process = subprocess.Popen(
            [*self.under, str(PROGRAM), *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running = Service(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            running.wait()
            assert process.stdout is not None
            process.stdout.close()
