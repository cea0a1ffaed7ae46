"""Copies elsewhere: RFC 5424 messages, a syslog server over TCP, a local socket."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from secure_dagu.audit import chain
from secure_dagu.audit.chain import Broken, Origin, Place
from secure_dagu.audit.events import Action, Detail, Event, Outcome
from secure_dagu.audit.export import framed, rfc5424
from secure_dagu.audit.log import open_trail
from secure_dagu.audit.syslog import Target, shipping
from tests.audit.conftest import NOW, an_event

MESSAGE = re.compile(
    rb"<(?P<pri>\d{1,3})>1 (?P<time>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<proc>[!-~]{1,128}) "
    rb'(?P<id>[!-~]{1,32}) \[(?P<data>[!-~]+(?: [!-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] (?P<text>.*)',
    re.DOTALL,
)
"""RFC 5424, section 6, as far as we use it."""


def line_of(event: Event) -> bytes:
    return chain.line_of(event, after=Place(), at=NOW, origin=Origin(host="ci.example.com", source="coordinator"))[0]


@pytest.mark.parametrize(
    ("outcome", "priority"), [(Outcome.SUCCEEDED, 109), (Outcome.DENIED, 108), (Outcome.FAILED, 107)]
)
def test_a_message_has_the_form_of_rfc_5424(outcome: Outcome, priority: int) -> None:
    found = MESSAGE.fullmatch(rfc5424(line_of(Event(action=Action.SECRET_READ, outcome=outcome, target="secret:a/b"))))
    assert found is not None
    assert int(found["pri"]) == priority
    assert (found["time"], found["host"], found["app"]) == (
        b"2026-11-25T12:00:00.000000Z", b"ci.example.com", b"secure-dagu",
    )  # fmt: skip
    assert found["id"] == b"secret.read"


def test_what_a_peer_named_itself_cannot_leave_its_field() -> None:
    bad = 'x"] [admin@1 ok="yes\\'
    found = MESSAGE.fullmatch(rfc5424(line_of(Event(action=Action.CALL_DENIED, details={Detail.CLAIMED: bad}))))
    assert found is not None
    assert found["text"].startswith(b"{")


def test_every_action_fits_its_field() -> None:
    for action in Action:
        found = MESSAGE.fullmatch(rfc5424(line_of(Event(action=action))))
        assert found is not None
        assert found["id"].decode() == action.value


def test_a_message_carries_the_line_that_the_chain_is_verified_by() -> None:
    line = line_of(an_event())
    found = MESSAGE.fullmatch(rfc5424(line))
    assert found is not None
    assert not isinstance(chain.follows(found["text"] + b"\n", Place()), Broken)


def test_a_frame_begins_with_its_length_in_octets() -> None:
    assert framed("ä".encode()) == b"2 \xc3\xa4"


class SyslogServer(threading.Thread):
    """Takes one connection and reads `count` messages by octet counting."""

    def __init__(self, count: int, *, port: int = 0) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(20)
        self.port = self._listener.getsockname()[1]
        self._count = count
        self.messages: list[bytes] = []
        self.start()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            for _ in range(self._count):
                length = b""
                while (char := stream.read(1)) not in (b" ", b""):
                    length += char
                self.messages.append(stream.read(int(length)))
        self._listener.close()

    def done(self) -> list[bytes]:
        self.join(20)
        return self.messages


async def test_records_reach_a_syslog_server_in_order(tmp_path: Path) -> None:
    server = SyslogServer(53)
    with shipping(Target(host="127.0.0.1", port=server.port), lambda _count: None) as ship:
        sent = open_trail(tmp_path / "a", host="ci", source="coordinator", on_written=lambda _e, lines, _p: ship(lines))
        async with sent as trail:
            for number in range(50):
                await trail.record(an_event(number))
    found = server.done()
    texts = [MESSAGE.fullmatch(message) for message in found]
    numbers = [chain.read(text["text"]).seq for text in texts if text is not None]
    assert numbers == list(range(1, 54))  # from the making of the key to the last signature


def test_a_server_that_is_not_there_holds_nothing_up() -> None:
    lost: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with shipping(Target(host="127.0.0.1", port=port), lost.append) as ship:
        ship([line_of(an_event())] * 10)
    assert sum(lost) == 10


def test_a_local_socket_takes_datagrams(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(10)
        with shipping(Target(path=str(tmp_path / "log")), lambda _count: None) as ship:
            ship([line_of(an_event())])
            assert MESSAGE.fullmatch(log.recv(65_536))


def test_without_a_target_nothing_is_sent() -> None:
    with shipping(None, lambda _count: None) as ship:
        ship([b"anything"])
