"""The vocabulary: closed, bounded, one line whatever comes in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.audit.chain import Origin, Place, follows, line_of, read
from secure_dagu.audit.events import (
    MAX_DETAIL,
    MAX_TEXT,
    MEANINGS,
    Action,
    Detail,
    Event,
    Outcome,
    by,
    recorded,
)
from secure_dagu.audit.methods import ACTION_OF
from secure_dagu.dispatch.model import Caller, Role, WorkerId
from secure_dagu.errors import Conflict, Unavailable
from secure_dagu.security.roles import RPC_RULES
from secure_dagu.security.secret import Secret
from secure_dagu.telemetry.metrics import AUDIT_CATEGORIES
from tests.audit.conftest import NOW

ORIGIN = Origin(host="ci", source="coordinator")


def test_every_action_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Action)


def test_no_method_of_the_role_table_lacks_an_action() -> None:
    """The generated test of the issue: what can be called leaves an event."""
    assert set(ACTION_OF) == set(RPC_RULES)


def test_the_metric_knows_every_category() -> None:
    assert set(AUDIT_CATEGORIES) == {action.category for action in Action}


@given(st.text(max_size=3000), st.text(max_size=3000))
def test_whatever_a_peer_sends_stays_one_bounded_line_of_json(text: str, detail: str) -> None:
    event = Event(action=Action.CALL_DENIED, actor=text, target=text, reason=text, details={Detail.CLAIMED: detail})
    line, place = line_of(event, after=Place(), at=NOW, origin=ORIGIN)
    assert line.count(b"\n") == 1
    assert follows(line, Place()) == place
    found = json.loads(line)
    assert len(found["actor"]) <= MAX_TEXT
    assert len(found["details"]["claimed"]) <= MAX_DETAIL
    assert found["target"].isprintable()


@pytest.mark.parametrize("bad", ['x\n{"action":"audit.checkpoint"}', "\x1b[2J", "a\u202eb", "a\u2028b", "\ud800"])
def test_a_name_with_control_characters_cannot_forge_a_record(bad: str) -> None:
    line, _ = line_of(Event(action=Action.JOINED, target=bad), after=Place(), at=NOW, origin=ORIGIN)
    record = read(line)
    assert record.action == "enrolment.joined"
    assert not set("\n\x1b\u202e\u2028") & set(record.target)
    assert b'"action":"audit.checkpoint"' not in line


def test_a_private_key_never_gets_into_a_record() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----"
    assert "MIGH" not in Event(action=Action.JOINED, reason=f"bad file: {pem}").reason


def test_a_secret_cannot_be_a_detail() -> None:
    with pytest.raises(TypeError):
        Event(action=Action.SECRET_READ, details={Detail.NAMES: Secret("hunter2")})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        Event(action=Action.SECRET_READ, target=Secret("hunter2"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Event(action=Action.SECRET_READ, details={"value": "hunter2"})  # type: ignore[dict-item]


def test_a_number_of_any_size_can_be_written() -> None:
    event = Event(action=Action.CRL_LOADED, details={Detail.NUMBER: 2**160, Detail.COUNT: 7})
    line, _ = line_of(event, after=Place(), at=NOW, origin=ORIGIN)
    assert read(line).details == {"number": str(2**160), "count": 7}


def test_what_an_unproven_caller_says_of_itself_is_not_the_actor() -> None:
    nobody = Caller(role=Role.ANONYMOUS, name="gpu-1", proven=False, worker=WorkerId("gpu-1"), address="192.0.2.1:9")
    event = by(nobody, Action.TASK_CLAIMED, "run:a/1")
    assert event.actor == ""
    assert event.details[Detail.CLAIMED] == "gpu-1"


class _Trail:
    def __init__(self, *, refuses: bool = False) -> None:
        self.events: list[Event] = []
        self._refuses = refuses

    async def record(self, event: Event) -> None:
        if self._refuses:
            raise Unavailable("full")
        self.events.append(event)

    def note(self, event: Event) -> None:
        self.events.append(event)


async def test_what_fails_after_its_record_leaves_a_second_one() -> None:
    trail = _Trail()
    with pytest.raises(Conflict):
        async with recorded(trail, Event(action=Action.STATE_WRITTEN)):
            raise Conflict("moved on")
    assert [(event.outcome, event.reason) for event in trail.events] == [
        (Outcome.SUCCEEDED, ""),
        (Outcome.FAILED, "conflict"),
    ]


async def test_what_cannot_be_recorded_does_not_happen() -> None:
    done = []
    with pytest.raises(Unavailable):
        async with recorded(_Trail(refuses=True), Event(action=Action.STATE_WRITTEN)):
            done.append(1)
    assert not done
