"""Write values as Go's `fmt` does, and read and write Go's quoted text. Pure.

Templates print through this: `%v` of a list is `[1 2]`, of a map `map[a:1]`, of a float `1e+06`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MAX_ITEMS = 200_000
"""Items of one printed value, nested ones counted each time they occur."""

MAX_DEPTH = 100
"""Levels of one printed value; a value that contains itself has no end."""

MAX_WIDTH = 10_000

_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"'}
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|([abfnrtv\\'\"])|(.?))", re.DOTALL
)
_SHORT = {char: f"\\{letter}" for letter, char in _ESCAPES.items() if letter not in "'"}
_VERB = re.compile(r"%([-+# 0]*)(\*|\d+)?(?:\.(\*|\d+)?)?(.)|%(.?)", re.DOTALL)


def unquoted(body: str) -> str | None:
    """Return what the text between Go quotes means; None when an escape is wrong."""
    is_wrong = False

    def meaning(found: re.Match[str]) -> str:
        nonlocal is_wrong
        if found[5]:
            return _ESCAPES[found[5]]
        digits = found[1] or found[2] or found[3]
        code = int(digits, 16) if digits else int(found[4], 8) if found[4] else -1
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            is_wrong = True
            return ""
        return chr(code)

    text = _ESCAPE.sub(meaning, body)
    return None if is_wrong else text


def quoted(text: str) -> str:
    """Return `text` in double quotes with Go's escapes."""
    return '"' + "".join(_SHORT.get(char) or _printable(char) for char in text) + '"'


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def float_text(value: float) -> str:
    """Return `%v` of a float: the shortest digits, with an exponent below 1e-4 and from 1e6 on."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    number = Decimal(repr(value)).normalize()
    exponent = number.adjusted() if value else 0
    if -4 <= exponent < 6:
        return format(number, "f")
    sign, digits, _ = number.as_tuple()
    first, *rest = map(str, digits)
    fraction = "." + "".join(rest) if rest else ""
    return f"{'-' if sign else ''}{first}{fraction}e{exponent:+03d}"


# ------------------------------------------------------------------------------------------------------------ printing


def show(value: Any) -> str:
    """Return `%v` of a value.

    Raises:
        ValueError: it has more than `MAX_ITEMS` items or is deeper than `MAX_DEPTH`.
    """
    return formatted("v", value)


def print_all(values: tuple[Any, ...]) -> str:
    """Return what `fmt.Sprint` does: a space between two operands of which neither is text."""
    pieces: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            pieces.append(" ")
        pieces.append(show(value))
    return "".join(pieces)


def print_line(values: tuple[Any, ...]) -> str:
    """Return what `fmt.Sprintln` does."""
    return " ".join(show(value) for value in values) + "\n"


def type_name(value: Any) -> str:
    """Return the name that Go has for the type."""
    if value is None:
        return "<nil>"
    if isinstance(value, Mapping):
        return "map[string]interface {}"
    if isinstance(value, list | tuple):
        return "[]interface {}"
    return {bool: "bool", int: "int", float: "float64", str: "string"}.get(type(value), type(value).__name__)


def printf(pattern: str, values: tuple[Any, ...]) -> str:
    """Return what `fmt.Sprintf` does; what does not fit is said in the text, as there: `%!d(string=x)`."""
    used = 0

    def following() -> Any:
        nonlocal used
        used += 1
        return values[used - 1] if used <= len(values) else _MISSING

    def number(text: str | None) -> int | None:
        if text != "*":
            return None if text is None else int(text)
        value = following()
        return value if isinstance(value, int) else 0

    def one(found: re.Match[str]) -> str:
        verb = found[4]
        if verb is None:
            return "%!(NOVERB)" + found[0][1:]
        flags = found[1]
        width = number(found[2])
        precision = number(found[3]) if found[3] else 0 if "." in found[0][1:-1] else None
        if verb == "%":
            return "%"
        if max(width or 0, precision or 0) > MAX_WIDTH:
            raise ValueError(f"a width over {MAX_WIDTH}")
        value = following()
        if value is _MISSING:
            return f"%!{verb}(MISSING)"
        return _padded(formatted(verb, value, flags, precision), flags, width or 0, verb)

    text = _VERB.sub(one, pattern)
    if used < len(values):
        rest = ", ".join("<nil>" if item is None else f"{type_name(item)}={show(item)}" for item in values[used:])
        text += f"%!(EXTRA {rest})"
    return text


_MISSING = object()


def _padded(text: str, flags: str, width: int, verb: str) -> str:
    if "-" in flags or width < 0:
        return text.ljust(abs(width))
    if "0" in flags and verb not in "vsqT":
        sign = text[:1] if text[:1] in "+-" else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def formatted(verb: str, value: Any, flags: str = "", precision: int | None = None) -> str:
    """Return one value under one verb, lists and maps item by item.

    Raises:
        ValueError: it has more than `MAX_ITEMS` items or is deeper than `MAX_DEPTH`.
    """
    left = MAX_ITEMS

    def walk(value: Any, depth: int) -> str:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("the value is too large to be printed")
        if isinstance(value, Mapping) and verb != "T":
            items = [f"{walk(key, depth + 1)}:{walk(item, depth + 1)}" for key, item in sorted(value.items())]
            return f"map[string]interface {{}}{{{', '.join(items)}}}" if is_source else f"map[{' '.join(items)}]"
        if isinstance(value, list | tuple) and verb != "T":
            texts = [walk(item, depth + 1) for item in value]
            return f"[]interface {{}}{{{', '.join(texts)}}}" if is_source else f"[{' '.join(texts)}]"
        if value is None and depth and verb == "v":
            return "interface {}(nil)" if is_source else "<nil>"
        text = _scalar(verb, value, flags, precision)
        return _misfit(verb, value) if text is None else text

    is_source = verb == "v" and "#" in flags
    return walk(value, 0)


def _misfit(verb: str, value: Any) -> str:
    return f"%!{verb}(<nil>)" if value is None else f"%!{verb}({type_name(value)}={show(value)})"


def _scalar(verb: str, value: Any, flags: str, precision: int | None) -> str | None:
    """Return a value without items under a verb; None when the verb is not for it."""
    if verb == "T":
        return type_name(value)
    if value is None:
        return "<nil>" if verb == "v" else None
    if isinstance(value, bool):
        return str(value).lower() if verb in "vt" else None
    if isinstance(value, str):
        return _text(verb, value, flags, precision)
    if isinstance(value, int):
        return _whole(verb, value, flags)
    if isinstance(value, float):
        return _real(verb, value, flags, precision)
    return str(value)


def _text(verb: str, value: str, flags: str, precision: int | None) -> str | None:
    value = value if precision is None else value[:precision]
    match verb:
        case "s":
            return value
        case "v":
            return quoted(value) if "#" in flags else value
        case "q":
            return f"`{value}`" if "#" in flags and "`" not in value else quoted(value)
        case "x" | "X":
            digits = value.encode("utf-8", "replace").hex(" " if " " in flags else "\0").replace("\0", "")
            return digits if verb == "x" else digits.upper()
        case _:
            return None


def _whole(verb: str, value: int, flags: str) -> str | None:
    sign = "+" if "+" in flags and value >= 0 else " " if " " in flags and value >= 0 else ""
    match verb:
        case "d" | "v":
            return f"{sign}{value}"
        case "x" | "X" | "o" | "b":
            return sign + format(value, f"#{verb}" if "#" in flags else verb)
        case "c":
            return chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value <= 0xDFFF else "\ufffd"
        case "q":
            return f"'{chr(value)}'" if 0 <= value <= 0x10FFFF and not 0xD800 <= value <= 0xDFFF else "'\ufffd'"
        case "U":
            return f"U+{value:04X}"
        case _:
            return None


def _real(verb: str, value: float, flags: str, precision: int | None) -> str | None:
    sign = "+" if "+" in flags and value >= 0 else " " if " " in flags and value >= 0 else ""
    if verb in "vg" and precision is None:
        return sign + float_text(value)
    if math.isinf(value) or math.isnan(value):
        return sign + float_text(value).lstrip("+")
    match verb:
        case "f" | "F" | "e" | "E":
            return sign + format(value, f".{6 if precision is None else precision}{verb}")
        case "v" | "g" | "G":
            return sign + format(value, f".{precision or 1}{'g' if verb == 'v' else verb}")
        case _:
            return None


# ---------------------------------------------------------------------------------------------------------------- JSON


def to_json(value: Any, *, indent: int | None = None, escapes_html: bool = True) -> str:
    """Return JSON as Go writes it: sorted keys, whole floats without a point, `<`, `>` and `&` escaped.

    Raises:
        ValueError: it has more than `MAX_ITEMS` items, is deeper than `MAX_DEPTH`, or holds a number JSON has not.
    """
    left = MAX_ITEMS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("the value is too large for JSON")
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
            return int(value)
        return value

    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        plain(value, 0), ensure_ascii=False, separators=separators, indent=indent, sort_keys=True, allow_nan=False
    )
    if not escapes_html:
        return text
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
