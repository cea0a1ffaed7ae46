"""Tables of keys: which keys a mapping may have and of which YAML kinds their values are. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct


class Use(Enum):
    """What this version does with a key."""

    ACTED_ON = "acted on"
    ACCEPTED = "accepted and ignored: not part of this edition"
    REFUSED = "not part of this edition"


class Key(Struct, frozen=True):
    """One key: its accepted YAML kinds and its use."""

    kinds: str
    use: Use = Use.ACTED_ON


Table = Mapping[str, Key]


def keys(written: str, use: Use = Use.ACTED_ON) -> dict[str, Key]:
    """Return the keys of `name=kinds` words."""
    return {name: Key(kinds, use) for name, kinds in (word.split("=") for word in written.split())}
