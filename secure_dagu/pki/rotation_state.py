"""How far a rotation of the CA is, and who still depends on which CA: by the ledger, and by who is connected."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory
from secure_dagu.pki.ledger import Status

STATE: Final = "rotation.json"
SEEN: Final = "peers.json"
"""Written by a running coordinator: who is connected, with which certificate."""


class Phase(StrEnum):
    """How far a rotation is; while `is_done` is false, that phase has begun."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    RETIRE = "retire"
    FINISH = "finish"
    ROLLBACK_ACTIVATE = "rollback-activate"
    ROLLBACK_PREPARE = "rollback-prepare"


class State(Struct, frozen=True, kw_only=True):
    """The state file."""

    phase: Phase
    is_done: bool
    old: str
    """SHA-256 of the old CA's certificate, as the ledger names issuers."""
    new: str = ""
    began: str


class Holder(Struct, frozen=True, kw_only=True):
    """The newest certificate of somebody, and which CA is behind it."""

    role: str
    name: str
    serial: str
    not_after: str
    ca: str
    """`old`, `new` or `other`."""
    seen: str
    """What it presents on a live connection: `old`, `new`, or empty when it is not connected."""


class Report(Struct, frozen=True, kw_only=True):
    """How a rotation stands."""

    state: State | None
    holders: tuple[Holder, ...] = ()

    @property
    def behind(self) -> tuple[Holder, ...]:
        """Return those whom the retirement of the old CA would lock out."""
        return tuple(holder for holder in self.holders if holder.ca == "old" or holder.seen == "old")


def read_state(place: Path) -> State | None:
    """Return how far it is; None: no rotation is under way.

    Raises:
        ConfigError: the state file is damaged.
    """
    try:
        return msgspec.json.decode((place / STATE).read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as problem:
        raise ConfigError(
            f"{place / STATE} cannot be read", why=str(problem), fix="restore it from your backup"
        ) from problem


def report(place: Path, *, now: datetime) -> Report:
    """Return how it stands, and who still depends on which CA: by the ledger, and by who is connected."""
    state = read_state(place)
    if state is None:
        return Report(state=None)
    new = state.new or "-"
    known = {state.old: "old", new: "new"}
    ledger, seen = directory.ledger(place), _seen_serials(place)
    presented: dict[tuple[str, str], set[str]] = {}
    for entry in ledger.entries():
        if entry.serial in seen:
            presented.setdefault((entry.role, entry.name), set()).add(known.get(entry.issuer, "other"))
    holders = []
    for entry in ledger.entries():
        newest = ledger.current(entry.role, entry.name)
        is_newest = newest is not None and newest.serial == entry.serial
        is_live = datetime.fromisoformat(entry.not_after) > now
        if not is_newest or not is_live or entry.status is Status.REVOKED:
            continue
        shown = presented.get((entry.role, entry.name), set())
        holders.append(
            Holder(
                role=entry.role, name=entry.name, serial=entry.serial, not_after=entry.not_after,
                ca=known.get(entry.issuer, "other"), seen="old" if "old" in shown else "new" if "new" in shown else "",
            )
        )  # fmt: skip
    return Report(state=state, holders=tuple(holders))


def _seen_serials(place: Path) -> frozenset[str]:
    try:
        document = msgspec.json.decode((place / SEEN).read_bytes())
        return frozenset([document["coordinator"], *(row["serial"] for row in document["peers"])])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return frozenset()
