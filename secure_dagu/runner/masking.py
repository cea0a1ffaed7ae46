"""What a run hides: its secrets, in each form in which a program may write them, in whatever pieces they come.

A secret of several lines is not only hidden whole. Its lines are what appears: a key is printed in a table, a JSON
file through `head`, a PEM file line by line. So each line is hidden too if it says something (`MIN_LINE_BYTES`); hiding
`{` or `}` everywhere would hide nothing and spoil every log.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

MASK: Final = b"*******"
MIN_LINE_BYTES: Final = 8
"""A line of a secret is hidden by itself from this length on, without the spaces around it, …"""
MIN_LINE_CHARACTERS: Final = 4
"""… if it has as many different letters and digits: `}, {` and `--------` are nobody's secret."""
MIN_ENCODED_BYTES: Final = 12
"""Base64 hides from this length on what is the same whatever stands before and after a secret."""
_ARMOUR = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]+-----")
_LINE_ENDS = re.compile(r"[\r\n]|\\r|\\n")
"""Written as JSON, the lines of a text end with two characters; a value of a JSON document may have several."""
_WORD: Final = 8
"""What is looked up at once; see `_Finder`."""
_STRIDES: Final = (7, 2, 1)
_FEW: Final = 8
"""So many forms are looked for one after the other: that is 4 GB/s for each."""
_MAX_WORDS: Final = 2**16
"""Past this a secret of many lines is looked for with shorter strides, which take more time and less memory."""
_LONG: Final = 128
"""A form is compared with the end of a piece from each of its bytes; of longer ones the first byte is searched for."""


def raw(text: str) -> bytes:
    """Return the bytes of a text as a program would write them, whatever is in it.

    A host's environment may hold bytes that are no text, which Python carries as surrogates; a surrogate out of JSON
    stands for nothing.
    """
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def forms(secret: str) -> frozenset[bytes]:
    """Return what is to be hidden of a secret: itself, as JSON, base64 and URLs have it, and its lines."""
    trimmed = secret.strip()
    if not trimmed:
        return frozenset((raw(secret),)) - {b""}
    texts = {secret, trimmed}
    for line in _LINE_ENDS.split(secret):
        line = line.strip().rstrip(",")
        said = {character for character in line if character.isalnum()}
        if len(raw(line)) >= MIN_LINE_BYTES and len(said) >= MIN_LINE_CHARACTERS and not _ARMOUR.fullmatch(line):
            texts.add(line)
    found = {raw(form) for text in texts for form in (text, json.dumps(text)[1:-1], _json_text(text))}
    found.update(raw(form(raw(text))) for text in (secret, trimmed) for form in (quote, quote_plus))
    found.update(_base64(raw(trimmed)))
    return frozenset(found)


def _json_text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _base64(value: bytes) -> Iterator[bytes]:
    """Yield what of a value's base64 does not depend on its neighbours, for each place in a group of three bytes.

    So `Basic` credentials are found, in which a password follows a name. Long ones come in lines, as `base64` wraps.
    """
    for before in range(3):
        text = base64.b64encode(bytes(before) + value)
        # The first characters hold bits of what stands before, the last of what follows.
        text = text[(0, 2, 3)[before] : len(text) - (0, 3, 2)[(before + len(value)) % 3]]
        if len(text) >= MIN_ENCODED_BYTES:
            yield text
            yield text.translate(bytes.maketrans(b"+/", b"-_"))
    if len(lines := base64.encodebytes(value).split()) > 1:
        yield from (line.rstrip(b"=") for line in lines if len(line) >= MIN_ENCODED_BYTES)


class Masker:
    """Replace secret values in a stream of pieces, across the borders between them."""

    def __init__(self, secrets: Sequence[str]) -> None:
        values = {form for value in secrets for form in forms(value)}
        self._finder = _Finder(values) if values else None
        self._held = b""

    def anew(self) -> Masker:
        """Return a masker of the same secrets for another stream."""
        other = Masker(())
        other._finder = self._finder
        return other

    def feed(self, data: bytes) -> bytes:
        """Return what can be written now; a tail that may be the beginning of a secret is held back."""
        if self._finder is None:
            return data
        data = self._held + data
        spans = self._finder.spans(data)
        end = len(data) - self._finder.begun(data)
        for start, stop in spans:
            if start < end < stop:
                end = stop  # a whole secret that ends inside the tail must not be cut in two
        self._held = data[end:]
        return _without(data[:end], spans)

    def finish(self) -> bytes:
        """Return what was held back; the stream has ended."""
        held, self._held = self._held, b""
        return _without(held, self._finder.spans(held)) if self._finder else held

    def text(self, text: str) -> str:
        """Return a whole text with secrets masked."""
        if self._finder is None:
            return text
        data = raw(text)
        return _without(data, self._finder.spans(data)).decode(errors="replace")


class _Finder:
    """Look for many values in a piece of data at once.

    A key of 4096 bits has hundreds of forms, and logs come by at hundreds of megabytes a second. So the data is not
    searched for each: every seventh word of eight bytes is looked up among all words of all values. A value of 63 bytes
    or more cannot lie anywhere without one of its words being met. Shorter ones need a closer look: every second word
    from 23 bytes on, every word from 15. What is shorter still, or alone, is searched for one by one.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        rest = list(values)
        self._words: list[tuple[int, dict[int, list[bytes]]]] = []
        for stride in _STRIDES:
            width = _WORD * stride
            fitting = [value for value in rest if len(value) >= width + _WORD - 1]
            if len(fitting) < _FEW or (stride > 1 and len(fitting) * width > _MAX_WORDS):
                continue
            words: dict[int, list[bytes]] = {}
            for value in fitting:
                for at in range(width):
                    words.setdefault(int.from_bytes(value[at : at + _WORD], sys.byteorder), []).append(value)
            self._words.append((stride, words))
            rest = [value for value in rest if len(value) < width + _WORD - 1]
        self._singles = rest
        self._of_lines = [value for value in values if b"\n" in value]
        self._long = [value for value in values if b"\n" not in value and len(value) > _LONG]
        self._short: dict[int, list[bytes]] = {}
        for value in values:
            if b"\n" not in value and len(value) <= _LONG:
                self._short.setdefault(value[0], []).append(value)
        short = [value for values in self._short.values() for value in values]
        self._inside = {value[at : at + 4] for value in short for at in range(len(value) - 3)}
        self._reach = max(map(len, short), default=0) - 1

    def spans(self, data: bytes) -> Sequence[tuple[int, int]]:
        """Return where values are, from left to right, the longest of those that begin together."""
        found = {value for value in self._singles if value in data}
        if self._words and len(data) >= _WORD:
            view = memoryview(data)[: len(data) // _WORD * _WORD].cast("Q")
            for stride, words in self._words:
                if not words.keys().isdisjoint(view[::stride]):
                    found.update(value for word in view[::stride] for value in words.get(word, ()))
        if not found:
            return ()
        places = []
        for value in found:
            at = data.find(value)
            while at >= 0:
                places.append((at, -len(value)))
                at = data.find(value, at + 1)
        spans: list[tuple[int, int]] = []
        end = 0
        for start, minus in sorted(places):
            if start >= end:
                end = start - minus
                spans.append((start, end))
        return spans

    def begun(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a value."""
        size, longest = len(data), 0
        line = data.rfind(b"\n") + 1  # what has no line break in it cannot have begun before the last one
        for values, floor in ((self._of_lines, 0), (self._long, line)):
            for value in values if floor < size else ():
                at = data.find(value[:1], max(floor, size - len(value) + 1))
                while 0 <= at < size - longest:
                    if value.startswith(data[at:]):
                        longest = size - at
                        break
                    at = data.find(value[:1], at + 1)
        # Four bytes and more have begun a value only if the last four are somewhere in one.
        reach = self._reach if data[-4:] in self._inside else min(self._reach, 3)
        for at in range(max(line, size - reach), size - longest):
            if any(len(value) > size - at and value.startswith(data[at:]) for value in self._short.get(data[at], ())):
                return size - at
        return longest


def _without(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    pieces: list[bytes] = []
    at = 0
    for start, stop in spans:
        if start >= len(data):
            break
        pieces += (data[at:start], MASK)
        at = stop
    return b"".join((*pieces, data[at:])) if pieces else data
