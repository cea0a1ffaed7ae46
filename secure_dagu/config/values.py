"""Parse one configured value: text from a flag, a variable or the file → the type that the program uses. Pure.

Every scalar arrives as text, also from YAML, so that `1.10` stays what was written. A parser raises ValueError with the
reason; `load` adds the key and where the value came from.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from secure_dagu.dispatch.address import host_port

Raw = str | list[Any] | dict[str, Any]
"""What a source gives for one key: text, a list of texts, or a map of texts."""

_BOOLS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
_BOOLS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_YEAR = timedelta(hours=8760)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?")
_CHARSET = re.compile(r"[a-z0-9._:-]{1,40}")
_ASCII_PROBES = (b"\\x41\n", bytes(range(0x20, 0x7F)) + b"\t\n")
"""The first finds encodings that read escapes."""
_LABEL_LIMIT = 64
_TEXT_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Parsed:
    """Mark a field's type with its parser and the word that help texts use for its values."""

    parse: Callable[[Any], Any]
    word: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a coordinator is dialled."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class NamedQueue:
    """A queue of the configuration."""

    name: str
    max_concurrency: int


class Hidden:
    """A secret of the configuration: no way of printing it shows it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return it, for the one use that it is made for."""
        return self._text

    def __repr__(self) -> str:
        return "(hidden)"

    __str__ = __repr__


def text(raw: Raw) -> str:
    """Take text without control characters, at most 4096 characters."""
    if not isinstance(raw, str):
        raise ValueError("expected a single value")  # noqa: TRY004 - a ValueError is what the caller turns into ours
    if len(raw) > _TEXT_LIMIT or not raw.isprintable():
        raise ValueError(f"expected at most {_TEXT_LIMIT} printable characters")
    return raw


def boolean(raw: Raw) -> bool:
    """Take Go's spellings of a truth value, and no others."""
    word = text(raw)
    if word not in _BOOLS:
        raise ValueError(f"{word!r} is neither true nor false")
    return _BOOLS[word]


def integer(*, minimum: int, maximum: int) -> Callable[[Raw], int]:
    """Return a parser of whole numbers in a range."""

    def parse(raw: Raw) -> int:
        word = text(raw).strip()
        if not re.fullmatch(r"[+-]?\d{1,18}", word, re.ASCII):
            raise ValueError(f"{word!r} is not a whole number")
        if not minimum <= int(word) <= maximum:
            raise ValueError(f"{word} is not between {minimum} and {maximum}")
        return int(word)

    return parse


def choice(*words: str) -> Callable[[Raw], str]:
    """Return a parser that takes one of these words."""

    def parse(raw: Raw) -> str:
        word = text(raw)
        if word not in words:
            raise ValueError(f'"{word}" (must be one of: {", ".join(words)})')
        return word

    return parse


def duration(raw: Raw) -> timedelta:
    """Take Go's durations, such as `1h30m` or `500ms`; `0` needs no unit. Negative ones are refused."""
    word = text(raw).strip().removeprefix("+")
    if word == "0":
        return timedelta(0)
    pieces = _DURATION.findall(word)
    if not pieces or "".join(pieces) != word or len(word) > 64:
        raise ValueError(f"{word[:64]!r} is not a duration such as 30s, 5m or 1h30m")
    seconds = 0.0
    for piece in pieces:
        number = piece.rstrip("nuµμmsh")
        seconds += float(number) * _SECONDS[piece[len(number) :]]
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{word!r} is too long") from None


def positive_duration(raw: Raw) -> timedelta:
    """Take a duration above zero, of a year (8760h) at most."""
    span = duration(raw)
    if not timedelta(0) < span <= _YEAR:
        raise ValueError(f"{raw!r} is not between 1ms and 8760h")
    return span


def texts(raw: Raw) -> tuple[str, ...]:
    """Take a list, or one text with commas; entries are trimmed and empty ones dropped."""
    if isinstance(raw, dict):
        raise ValueError("expected a list")  # noqa: TRY004 - as above
    entries = raw.split(",") if isinstance(raw, str) else raw
    return tuple(word for entry in entries if (word := text(entry).strip()))


def hidden(raw: Raw) -> Hidden:
    """Take a secret."""
    return Hidden(text(raw))


def url_path(raw: Raw) -> str:
    """Take a prefix of URLs: `/a/b` without a slash at its end; `/` is none."""
    word = text(raw).strip().rstrip("/")
    if not word:
        return ""
    if set(word) & set("?#\\ ") or "//" in word or any(part in (".", "..") for part in word.split("/")):
        raise ValueError(f"{word!r} is no path of a URL")
    return word if word.startswith("/") else f"/{word}"


def public_url(raw: Raw) -> str:
    """Take an absolute http(s) URL without query and fragment; no slash at its end."""
    word = text(raw).strip().rstrip("/")
    if word and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[^?#\\\s]*)?", word):
        raise ValueError(f"{word!r} is no absolute http or https URL without query and fragment")
    return word


def charset(raw: Raw) -> str:
    """Take the name of a character encoding in which ASCII is as it is, so that a line ends where its bytes do."""
    word = text(raw).strip().lower()
    if not word:
        return ""
    try:
        is_like_ascii = all(probe.decode(word) == probe.decode("ascii") for probe in _ASCII_PROBES)
    except (LookupError, UnicodeError):  # unknown, no encoding of text, or one of wider characters
        is_like_ascii = False
    if not is_like_ascii or not _CHARSET.fullmatch(word):
        raise ValueError(f"{word!r} is no known character encoding that begins with ASCII")
    return word


def networks(raw: Raw) -> tuple[Any, ...]:
    """Take a list of addresses and networks; return `ipaddress` networks."""
    found = []
    for word in texts(raw):
        try:
            found.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            raise ValueError(f"{word!r} is neither an address nor a network") from None
    return tuple(found)


def named_queues(raw: Raw) -> tuple[NamedQueue, ...]:
    """Take a list of maps with `name` and `max_concurrency` (or `max_active_runs`, which wins)."""
    if not isinstance(raw, list):
        raise ValueError("expected a list of maps with name and max_concurrency")  # noqa: TRY004 - as above
    found: dict[str, NamedQueue] = {}
    for entry in raw:
        if not isinstance(entry, dict) or not entry.get("name"):
            raise ValueError("each queue is a map with a name")
        if unknown := set(entry) - {"name", "max_concurrency", "max_active_runs"}:
            raise ValueError(f"{sorted(unknown)[0]!r} is unknown there")
        name = text(entry["name"])
        if not re.fullmatch(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,64}", name) or name in found:
            raise ValueError(f"{name!r} is no name of a queue, or given twice")
        limit = entry.get("max_active_runs") or entry.get("max_concurrency") or "1"
        found[name] = NamedQueue(name, integer(minimum=1, maximum=100_000)(limit))
    return tuple(found.values())


def identity_rules(raw: Raw) -> tuple[Any, ...]:
    """Return the mapping rules of foreign certificates (`security.mapping.Rule`)."""
    from secure_dagu.security import mapping  # --help needs none of it

    return mapping.parse_rules(raw)


def labels(raw: Raw) -> Mapping[str, str]:
    """Take a map, or `k1=v1,k2=v2`. Keys keep their case; every entry must have a key and a value."""
    pairs: dict[str, str] = {}
    if isinstance(raw, dict):
        entries = [(str(key), value) for key, value in raw.items()]
    else:
        split = [entry.partition("=") for entry in texts(raw)]
        if bad := [key for key, sign, _ in split if not sign]:
            raise ValueError(f"{bad[0]!r} has no =, expected key=value")
        entries = [(key, value) for key, _, value in split]
    for name, value in entries:
        key, word = name.strip(), text("" if value is None else value).strip()
        if not key or not word:
            raise ValueError(f"{name + '=' + word!r} lacks a key or a value")
        if key in pairs:
            raise ValueError(f"{key!r} is given twice")
        pairs[key] = word
    if len(pairs) > _LABEL_LIMIT:
        raise ValueError(f"{len(pairs)} labels are more than {_LABEL_LIMIT}")
    return pairs


def host(raw: Raw) -> str:
    """Take a host name or address without a port; an IPv6 address may stand in brackets."""
    word = text(raw).strip()
    bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        if _HOST.fullmatch(bare):
            return bare
    raise ValueError(f"{word!r} is not a host name or address (it has no port)")


def hosts(raw: Raw) -> tuple[str, ...]:
    """Take a list of host names or addresses."""
    return tuple(dict.fromkeys(host(word) for word in texts(raw)))


def address(word: str) -> Address:
    """Take `host:port`, an IPv6 address in brackets."""
    name, colon, port = word.rpartition(":")
    if not colon or not name or (":" in name and not name.startswith("[")):
        raise ValueError(f"{word!r} is not HOST:PORT (an IPv6 address stands in brackets)")
    return Address(host(name), integer(minimum=1, maximum=65535)(port))


def syslog(raw: Raw) -> str:
    """Take `host:port`, the absolute path of a local socket, or nothing."""
    word = text(raw).strip()
    if word and not word.startswith("/"):
        address(word)
    return word


def addresses(raw: Raw) -> tuple[Address, ...]:
    """Take a list of `host:port`."""
    return tuple(dict.fromkeys(address(word) for word in texts(raw)))


def shown(value: Any) -> str:
    """Return a value the way it would be configured: the inverse of the parsers, for people and for JSON."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case timedelta():
            return _duration_text(value)
        case tuple():
            return ",".join(shown(item) for item in value)
        case Mapping():
            return ",".join(f"{key}={item}" for key, item in value.items())
        case NamedQueue():
            return f"{value.name}={value.max_concurrency}"
        case _:
            return str(value)


def _duration_text(value: timedelta) -> str:
    milliseconds = round(value.total_seconds() * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    hours, rest = divmod(milliseconds // 1000, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if number]
    return "".join(parts) or "0s"
