"""Template functions on text: case, trimming, regular expressions, encodings, paths, digests. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
import re
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus, urlsplit, urlunsplit

from secure_dagu.dag import go_regexp, go_text
from secure_dagu.dag.gotemplate_values import (
    MAX_SUBJECT,
    Failure,
    bounded,
    items,
    shown,
    size,
    table,
    text,
    whole,
)


def _substr(start: Any, end: Any, value: Any) -> str:
    data = text(value).encode("utf-8", "surrogateescape")
    first, last = size(start), size(end)
    if first < 0:
        part = data[: max(last, 0)]
    elif last < 0 or last > len(data):
        part = data[first:]
    else:
        part = data[first:last]
    return part.decode("utf-8", "replace")


def _trunc(length: Any, value: Any) -> str:
    count, data = size(length), text(value)
    return data[:count] if count >= 0 else data[count:] if -count < len(data) else data


def _abbrev(width: Any, value: Any) -> str:
    most, data = size(width), text(value)
    return data if most < 4 or len(data) <= most else data[: most - 3] + "..."


def _abbrevboth(left: Any, right: Any, value: Any) -> str:
    offset, most, data = size(left), size(right), text(value)
    if most < 4 or (offset > 0 and most < 7) or len(data) <= most:
        return data
    offset = min(offset, len(data))
    if len(data) - offset < most - 3:
        offset = len(data) - (most - 3)
    if offset <= 4:
        return data[: most - 3] + "..."
    if offset + most - 3 < len(data):
        return "..." + _abbrev(most - 3, data[offset:])
    return "..." + data[len(data) - (most - 3) :]


def _wrapped(width: Any, separator: str, value: Any, *, breaks_words: bool) -> str:
    most = max(1, size(width))
    lines: list[str] = []
    rest = text(value)
    bounded(len(rest) + len(rest) // most * len(separator))
    at = 0
    while len(rest) - at > most:
        if rest[at] == " ":
            at += 1
            continue
        space = rest.rfind(" ", at, at + most + 1)
        if space <= at:
            space = at + most if breaks_words else rest.find(" ", at + most)
        if space < 0:
            break
        lines.append(rest[at:space])
        at = space if rest[space : space + 1] != " " else space + 1
    lines.append(rest[at:])
    return separator.join(lines)


def _words(value: str) -> list[str]:
    """Return the words of a name in any case style."""
    return re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+", value)


def _camelcase(value: Any) -> str:
    parts = re.split(r"[\s_-]+", text(value))
    return "".join(part[:1].upper() + part[1:] for part in parts)


def _title(value: Any) -> str:
    return re.sub(r"(?<![\w'])\w", lambda found: found[0].upper(), text(value))


def _untitle(value: Any) -> str:
    return re.sub(r"(?<!\S)\S", lambda found: found[0].lower(), text(value))


def _swapcase(value: Any) -> str:
    """Swap case; an upper-case letter that starts a word becomes lower, a lower-case one title case."""
    return text(value).swapcase()


def _initials(value: Any) -> str:
    return "".join(word[0] for word in text(value).split())


def _repeat(count: Any, value: Any) -> str:
    times, data = size(count), text(value)
    bounded(times * len(data))
    return data * times


def _replace(old: Any, new: Any, value: Any) -> str:
    find, data = text(old), text(value)
    count = data.count(find) if find else len(data) + 1
    bounded(len(data) + count * len(text(new)))
    return data.replace(find, text(new))


def _indent(spaces: Any, value: Any) -> str:
    data, pad = text(value), size(spaces)
    bounded(len(data) + (data.count("\n") + 1) * max(pad, 0))
    return " " * pad + data.replace("\n", "\n" + " " * pad)


def _cat(*values: Any) -> str:
    return " ".join(shown(value) for value in values if value is not None)


def _quoted(*values: Any) -> str:
    return " ".join(go_text.quoted(shown(value)) for value in values if value is not None)


def _squoted(*values: Any) -> str:
    return " ".join(f"'{shown(value)}'" for value in values if value is not None)


def _plural(one: Any, many: Any, count: Any) -> str:
    return text(one) if whole(count) == 1 else text(many)


def _split(separator: Any, value: Any) -> list[str]:
    data = text(value)
    return data.split(text(separator)) if separator else list(data)


def _splitn(separator: Any, count: Any, value: Any) -> dict[str, str]:
    most = size(count)
    pieces = text(value).split(text(separator), most - 1) if most > 0 else text(value).split(text(separator))
    return {f"_{index}": piece for index, piece in enumerate(pieces)}


def _join(separator: Any, values: Any) -> str:
    pieces = [shown(item) for item in values if item is not None] if isinstance(values, list) else [shown(values)]
    bounded(sum(map(len, pieces)) + len(pieces) * len(text(separator)))
    return text(separator).join(pieces)


def _trim_prefix(prefix: Any, value: Any) -> str:
    return text(value).removeprefix(text(prefix))


def _trim_suffix(suffix: Any, value: Any) -> str:
    return text(value).removesuffix(text(suffix))


# -------------------------------------------------------------------------------------------------- regular expressions


def _regex(pattern: Any) -> re.Pattern[str]:
    try:
        return go_regexp.compiled(text(pattern))
    except ValueError as problem:
        raise Failure(str(problem)) from problem


def _subject(value: Any) -> str:
    data = text(value)
    if len(data) > MAX_SUBJECT:
        raise Failure(f"a regular expression is matched against at most {MAX_SUBJECT} characters")
    return data


def _regex_find(pattern: Any, value: Any) -> str:
    found = _regex(pattern).search(_subject(value))
    return found[0] if found else ""


def _regex_find_all(pattern: Any, value: Any, count: Any) -> list[str]:
    most = size(count)
    found = [match[0] for match in _regex(pattern).finditer(_subject(value))]
    return found if most < 0 else found[:most]


def _regex_replace(pattern: Any, value: Any, replacement: Any, *, is_literal: bool = False) -> str:
    regex, data, new = _regex(pattern), _subject(value), text(replacement)

    def group(found: re.Match[str], name: str) -> str:
        try:
            return found[int(name) if name.isdigit() else name] or ""
        except (IndexError, ValueError):
            return ""

    def value_of(found: re.Match[str]) -> str:
        if is_literal:
            return new
        return re.sub(
            r"\$(?:(\$)|\{(\w+)\}|(\w+))", lambda part: part[1] or group(found, part[2] or part[3]), new, flags=re.ASCII
        )

    pieces: list[str] = []
    made = at = 0
    for found in regex.finditer(data):
        pieces += (data[at : found.start()], value_of(found))
        made += len(pieces[-1])
        bounded(made)
        at = found.end()
    return "".join(pieces) + data[at:]


def _regex_replace_literal(pattern: Any, value: Any, replacement: Any) -> str:
    return _regex_replace(pattern, value, replacement, is_literal=True)


def _regex_split(pattern: Any, value: Any, count: Any) -> list[str]:
    most = size(count)
    if most == 0:
        return []
    data, at = _subject(value), 0
    pieces: list[str] = []
    for found in _regex(pattern).finditer(data):
        if len(pieces) == most - 1:
            break
        if found.end() == 0:
            continue
        pieces.append(data[at : found.start()])
        at = found.end()
    return [*pieces, data[at:]]


# ------------------------------------------------------------------------------------------------ encodings and escapes


def _data(value: Any) -> bytes:
    return text(value).encode("utf-8", "surrogateescape")


def _decoded(decode: Callable[..., bytes]) -> Callable[[Any], str]:
    def function(value: Any) -> str:
        try:
            return decode(_data(value)).decode("utf-8", "replace")
        except (ValueError, binascii.Error) as problem:
            raise Failure(f"illegal base64 or base32 data: {problem}") from problem

    return function


def _b64_strict(data: bytes) -> bytes:
    return base64.b64decode(data, validate=True)


def _html(*values: Any) -> str:
    data = go_text.print_all(values)
    for char, escape in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ('"', "&#34;"),
        ("'", "&#39;"),
        ("\0", "\ufffd"),
    ):
        data = data.replace(char, escape)
    return data


def _js(*values: Any) -> str:
    def escape(found: re.Match[str]) -> str:
        char = found[0]
        return f"\\{char}" if char in "\\'\"" else f"\\u{ord(char):04X}"

    return re.sub("[\\\\'\"<>&=\\x00-\\x1f\\x7f\u2028\u2029]", escape, go_text.print_all(values))


def _urlquery(*values: Any) -> str:
    return quote_plus(go_text.print_all(values), safe="")


def _base(path: Any) -> str:
    data = text(path)
    return "." if not data else data.rstrip("/").rpartition("/")[2] or "/"


def _clean(path: Any) -> str:
    cleaned = posixpath.normpath(text(path) or ".")
    return "/" + cleaned.lstrip("/") if cleaned.startswith("//") else cleaned


def _dir(path: Any) -> str:
    return _clean(text(path).rpartition("/")[0] or ("/" if text(path).startswith("/") else "."))


def _ext(path: Any) -> str:
    name = text(path).rpartition("/")[2]
    return "." + name.rpartition(".")[2] if "." in name else ""


def _url_parse(value: Any) -> dict[str, Any]:
    try:
        url = urlsplit(text(value))
        return {
            "scheme": url.scheme, "host": url.netloc.rpartition("@")[2], "hostname": url.hostname or "",
            "path": url.path, "query": url.query, "opaque": "", "fragment": url.fragment,
            "userinfo": url.netloc.rpartition("@")[0],
        }  # fmt: skip
    except ValueError as problem:
        raise Failure(f"unable to parse url: {problem}") from problem


def _url_join(parts: Any) -> str:
    given = {key: shown(value) for key, value in table(parts).items()}
    user = given.get("userinfo", "")
    host = (f"{user}@" if user else "") + given.get("host", "")
    return urlunsplit(
        (given.get("scheme", ""), host, given.get("path", ""), given.get("query", ""), given.get("fragment", ""))
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "upper": lambda value: text(value).upper(),
    "lower": lambda value: text(value).lower(),
    "trim": lambda value: text(value).strip(),
    "trimAll": lambda cut, value: text(value).strip(text(cut)),
    "trimall": lambda cut, value: text(value).strip(text(cut)),
    "trimPrefix": _trim_prefix,
    "trimSuffix": _trim_suffix,
    "title": _title,
    "untitle": _untitle,
    "substr": _substr,
    "trunc": _trunc,
    "abbrev": _abbrev,
    "abbrevboth": _abbrevboth,
    "initials": _initials,
    "nospace": lambda value: re.sub(r"\s", "", text(value)),
    "swapcase": _swapcase,
    "snakecase": lambda value: "_".join(_words(text(value))).lower(),
    "kebabcase": lambda value: "-".join(_words(text(value))).lower(),
    "camelcase": _camelcase,
    "wrap": lambda width, value: _wrapped(width, "\n", value, breaks_words=False),
    "wrapWith": lambda width, separator, value: _wrapped(width, text(separator), value, breaks_words=True),
    "contains": lambda part, value: text(part) in text(value),
    "hasPrefix": lambda prefix, value: text(value).startswith(text(prefix)),
    "hasSuffix": lambda suffix, value: text(value).endswith(text(suffix)),
    "quote": _quoted,
    "squote": _squoted,
    "cat": _cat,
    "indent": _indent,
    "nindent": lambda spaces, value: "\n" + _indent(spaces, value),
    "replace": _replace,
    "repeat": _repeat,
    "plural": _plural,
    "split": _split,
    "splitList": _split,
    "splitn": _splitn,
    "join": _join,
    "sortAlpha": lambda values: sorted(shown(item) for item in items(values)),
    "toString": shown,
    "toStrings": lambda values: [shown(item) for item in items(values)],
    "regexMatch": lambda pattern, value: bool(_regex(pattern).search(_subject(value))),
    "regexFind": _regex_find,
    "regexFindAll": _regex_find_all,
    "regexReplaceAll": _regex_replace,
    "regexReplaceAllLiteral": _regex_replace_literal,
    "regexSplit": _regex_split,
    "regexQuoteMeta": lambda value: re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", text(value)),
    "b64enc": lambda value: base64.b64encode(_data(value)).decode(),
    "b64dec": _decoded(_b64_strict),
    "b32enc": lambda value: base64.b32encode(_data(value)).decode(),
    "b32dec": _decoded(base64.b32decode),
    "sha1sum": lambda value: hashlib.sha1(_data(value), usedforsecurity=False).hexdigest(),
    "sha256sum": lambda value: hashlib.sha256(_data(value)).hexdigest(),
    "sha512sum": lambda value: hashlib.sha512(_data(value)).hexdigest(),
    "adler32sum": lambda value: str(zlib.adler32(_data(value))),
    "html": _html,
    "js": _js,
    "urlquery": _urlquery,
    "base": _base,
    "osBase": _base,
    "dir": _dir,
    "osDir": _dir,
    "ext": _ext,
    "osExt": _ext,
    "clean": _clean,
    "osClean": _clean,
    "isAbs": lambda path: text(path).startswith("/"),
    "osIsAbs": lambda path: text(path).startswith("/"),
    "urlParse": _url_parse,
    "urlJoin": _url_join,
}
