"""Machines in network namespaces, each with its own addresses, /etc and home; nothing of the real host is changed.

A network is a namespace with a bridge, a machine one with a veth to each of its networks. Names carry the id of the
process, so that processes do not meet; when the lab is left, the namespaces go and everything in them goes along.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import needs
from tests.system.hosts import PATIENCE_S, Service

_numbers = itertools.count(1)
# A command sees /etc with the machine's own files on top: names as in any network, and paths as a guide gives them.
# What daemons leave in /run and /var/log stays with the machine.
_ENTER = """
mount -t overlay overlay -o "lowerdir=$0/etc:/etc" /etc
mount --bind "$0/run" /run
mount --bind "$0/log" /var/log
exec "$@"
"""
_WATCH = """
table inet watch {
  chain in {
    type filter hook input priority -300
    iif != lo tcp flags & (syn | ack) == syn counter
  }
  chain out {
    type filter hook output priority -300
    oif != lo tcp flags & (syn | ack) == syn counter
  }
}
"""


@dataclass(frozen=True)
class Dials:
    """TCP connections that were begun, lost attempts included."""

    came: int
    went: int


@dataclass
class Machine:
    """One machine of a lab."""

    name: str
    space: str
    folder: Path

    @property
    def home(self) -> Path:
        """Return the home of its only user."""
        return self.folder / "home"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words that run a command on it."""
        return ("ip", "netns", "exec", self.space, "sh", "-ec", _ENTER, str(self.folder))

    @property
    def environment(self) -> dict[str, str]:
        """Return what a person's shell on it knows."""
        return {
            "PATH": f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def file(self, path: str, text: str) -> None:
        """Write a file below /etc or ~."""
        place = self.home / path[2:] if path.startswith("~/") else self.folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def program(self, name: str, script: str) -> None:
        """Install a program that stands in for one which cannot run here."""
        place = self.folder / "bin" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!/bin/sh\n{script}")
        place.chmod(0o755)

    def reaches(self, address: str) -> bool:
        """Tell whether a TCP connection to `host:port` opens within a second."""
        return self.sh(f"exec socat -u OPEN:/dev/null TCP:{address},connect-timeout=1").returncode == 0

    def sh(self, script: str, *, input_: str = "", timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        return subprocess.run(
            [*self.prefix, "sh", "-euc", script], cwd=self.home, env=self.environment, input=input_,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def ok(self, script: str, *, timeout_s: float = PATIENCE_S) -> str:
        """Run a script that must succeed; return its standard output."""
        done = self.sh(script, timeout_s=timeout_s)
        assert done.returncode == 0, f"{self.name}: exit {done.returncode}\n{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def stays(self, script: str) -> Iterator[Service]:
        """Run a command that stays; at the end it and its children are ended, by their own group."""
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.prefix, "sh", "-euc", f"exec {script}"],
            cwd=self.home, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        service = Service(process)
        try:
            yield service
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            service.wait()
            assert process.stdout is not None
            process.stdout.close()

    def listening(self) -> set[str]:
        """Return the TCP addresses that somebody listens on."""
        shown = _run("ip", "netns", "exec", self.space, "ss", "-Hltn")
        return {line.split()[3] for line in shown.splitlines()}

    def dials(self) -> Dials:
        """Return how many connections came and went over the network so far."""
        found = json.loads(_run("ip", "netns", "exec", self.space, "nft", "-j", "list", "table", "inet", "watch"))
        packets = {
            one["rule"]["chain"]: part["counter"]["packets"]
            for one in found["nftables"]
            if "rule" in one
            for part in one["rule"]["expr"]
            if "counter" in part
        }
        return Dials(came=packets["in"], went=packets["out"])


@dataclass
class Lab:
    """Networks and machines of one test."""

    folder: Path
    _stack: ExitStack
    _networks: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _machines: list[Machine] = field(default_factory=list)

    def machine(self, name: str, *, names: Mapping[str, str] | None = None, **interfaces: str) -> Machine:
        """Add a machine. `eth0="lan 10.0.0.5/24"` connects it to the network `lan`; `names` are names of its addresses,
        which every machine of the lab can resolve.
        """
        made = Machine(name, self._space(), self.folder / name)
        for part in ("etc", "run/sshd", "log", "home"):
            (made.folder / part).mkdir(parents=True)
        # The only user's home, also for programs that do not ask HOME, such as ssh.
        made.file("/etc/passwd", f"root:x:0:0:root:{made.home}:/bin/sh\n" + "\n".join(_users()) + "\n")
        for interface, told in interfaces.items():
            network, *addresses = told.split()
            bridge = self._network(network)
            port = f"p{next(_numbers)}"
            _ip(made.space, f"link add name {interface} type veth peer {port} netns {bridge}")
            _ip(bridge, f"link set {port} master bridge0 up")
            _ip(made.space, f"link set {interface} up")
            for address in addresses:
                _ip(made.space, f"address add {address} dev {interface} {'nodad' if ':' in address else ''}")
        _run("ip", "netns", "exec", made.space, "nft", "-f", "-", stdin=_WATCH)
        self._names |= names or {}
        self._machines.append(made)
        for each in self._machines:
            lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{at} {what}" for what, at in self._names.items())]
            each.file("/etc/hosts", "\n".join([*lines, ""]))
            each.file("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        return made

    def _network(self, name: str) -> str:
        if name not in self._networks:
            self._networks[name] = space = self._space()
            _ip(space, "link add name bridge0 type bridge stp_state 0 forward_delay 0")
            _ip(space, "link set bridge0 up")
        return self._networks[name]

    def _space(self) -> str:
        name = f"sd{os.getpid()}-{next(_numbers)}"
        _run("ip", "netns", "add", name)
        self._stack.callback(_run, "ip", "netns", "delete", name)
        _ip(name, "link set lo up")
        return name


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Make a lab below `folder`; afterwards nothing of it is left but files there."""
    needs.root(why="network namespaces are made")
    for name, package in (("ip", "iproute2"), ("nft", "nftables")):
        needs.program(name, package=package)
    _sweep()
    with ExitStack() as stack:
        yield Lab(folder, stack)


def _sweep() -> None:
    """Remove what test processes left that were killed."""
    for name in _run("ip", "netns", "list").split():
        made_by = re.fullmatch(r"sd(\d+)-\d+", name)
        if made_by is not None and not Path("/proc", made_by[1]).exists():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)  # or another one does


def _users() -> list[str]:
    return [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]


def _ip(space: str, words: str) -> None:
    _run("ip", "-n", space, *words.split())


def _run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
