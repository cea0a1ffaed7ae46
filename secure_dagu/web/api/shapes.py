"""What every section of the REST API shares: paging, times, labels, and doubt about documents. Pure.

The shapes of the API are `TypedDict`s: mypy checks the functions that make them, and the OpenAPI document describes
them. Documents come from workers, so a value of the wrong type counts as one that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from typing_extensions import TypedDict

from secure_dagu.run.snapshot import encode

_T = TypeVar("_T")


class Pagination(TypedDict):
    """Where a page stands; without a next or previous page, `nextPage` and `prevPage` are the page itself."""

    totalRecords: int
    currentPage: int
    totalPages: int
    nextPage: int
    prevPage: int


def page_of(items: Sequence[_T], *, page: int, per_page: int) -> tuple[Sequence[_T], Pagination]:
    """Return one page, counted from 1, and where it stands; a page behind the end is empty."""
    pages = max(1, -(-len(items) // per_page))
    start = (page - 1) * per_page
    return items[start : start + per_page], {
        "totalRecords": len(items),
        "currentPage": page,
        "totalPages": pages,
        "nextPage": min(page + 1, pages),
        "prevPage": max(page - 1, 1),
    }


def moment(at: datetime | None) -> str:
    """Return RFC 3339 in UTC, whole seconds; empty for not yet."""
    return f"{at.astimezone(UTC).isoformat(timespec='seconds')[:19]}Z" if at else ""


def text(value: Any) -> str:
    """Return a text of a document."""
    return value if isinstance(value, str) else ""


def time_text(value: Any) -> str:
    """Return a time of a document; `-` is what others write for not yet."""
    return value if isinstance(value, str) and value != "-" else ""


def count(value: Any) -> int:
    """Return a number of a document."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def texts(value: Any) -> list[str]:
    """Return a list of texts of a document; one text is a list of itself."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return a list of objects of a document."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def mapping(value: Any) -> Mapping[str, Any]:
    """Return an object of a document."""
    return value if isinstance(value, Mapping) else {}


def segment(name: str) -> str:
    """Return a name as one segment of a URL's path."""
    return quote(name, safe="", errors="replace")


def encoded(value: Any) -> bytes:
    """Return compact JSON; half a surrogate pair, which a document can spell and UTF-8 cannot, becomes U+FFFD."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return encode(value).encode()
