"""Read the file of an import and say how its rows go into a table (workflow language, section 4.5)."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.sql_text import Dialect, quote
from secure_dagu.runner.files import path_below

MAX_LINE = 16 * 2**20
"""Characters of one line of an imported file."""
MAX_BATCH = 100_000
KEYS = frozenset(
    "input_file table format has_header delimiter columns null_values batch_size on_conflict conflict_target "  # noqa: SIM905
    "update_columns skip_rows max_rows dry_run".split()
)
_SUFFIXES = {".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_NULLS = ("", "NULL", "null", "\\N")


class Plan(Struct, frozen=True, kw_only=True):
    """What `with.import` says."""

    input_file: Path
    table: str
    format: str
    has_header: bool
    delimiter: str
    columns: tuple[str, ...]
    null_values: frozenset[str]
    batch_size: int
    on_conflict: str
    conflict_target: tuple[str, ...]
    update_columns: tuple[str, ...]
    skip_rows: int
    max_rows: int
    dry_run: bool

    @classmethod
    def of(cls, options: Options, cwd: Path) -> Plan:
        """Read the map.

        Raises:
            DefinitionError: a key is unknown, missing or wrong.
        """
        unknown = sorted(options.keys() - KEYS)
        if unknown:
            raise DefinitionError(f'invalid keys: "{unknown[0][:80]}"', why="with.import has no such key")
        path = path_below(cwd, options.needed("input_file"))
        by_name = _SUFFIXES.get(path.suffix.lower(), "csv")
        form = options.choice("format", ("csv", "tsv", "jsonl"), by_name)
        delimiter = options.text("delimiter") or ("\t" if form == "tsv" else ",")
        delimiter = "\t" if delimiter == "\\t" else delimiter
        if len(delimiter) != 1 or delimiter in '"\r\n\0':
            raise DefinitionError("with.import.delimiter cannot be used", why="expected one character")
        nulls = options.texts("null_values") if "null_values" in options else _NULLS
        return cls(
            input_file=path,
            table=options.needed("table"),
            format=form,
            has_header=options.boolean("has_header", default=True),
            delimiter=delimiter,
            columns=tuple(options.texts("columns")),
            null_values=frozenset(nulls),
            batch_size=options.integer("batch_size", 1000, maximum=MAX_BATCH) or 1000,
            on_conflict=options.choice("on_conflict", ("error", "ignore", "replace"), "error"),
            conflict_target=tuple(
                name.strip() for text in options.texts("conflict_target") for name in text.split(",") if name.strip()
            ),
            update_columns=tuple(options.texts("update_columns")),
            skip_rows=options.integer("skip_rows"),
            max_rows=options.integer("max_rows"),
            dry_run=options.boolean("dry_run"),
        )


class Source:
    """The rows of an open file, in batches."""

    def __init__(self, columns: Sequence[str], width: int, rows: Iterator[Sequence[Any]], batch_size: int) -> None:
        self.columns = tuple(columns)
        """Empty: every column of the table, in its order."""
        self.width = width
        self._rows = rows
        self._batch_size = batch_size
        self._is_interrupted = False

    def next_batch(self) -> list[Sequence[Any]]:
        """Return the next rows, none at the end. Reads the disk."""
        try:
            return [] if self._is_interrupted else list(islice(self._rows, self._batch_size))
        except csv.Error as error:
            raise DefinitionError("the input file cannot be read", why=str(error)) from None
        except UnicodeDecodeError:
            raise DefinitionError("the input file is not UTF-8") from None

    def interrupt(self) -> None:
        """Read nothing more."""
        self._is_interrupted = True


@contextmanager
def reading(plan: Plan) -> Iterator[Source]:
    """Open the file of an import.

    Raises:
        DefinitionError: it is missing, no plain file, or its content has not the promised form.
    """
    try:
        # A pipe must not make us wait for a writer.
        handle = os.open(plan.input_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DefinitionError("the input file cannot be read", why=str(error.strerror)) from None
    with os.fdopen(handle, "rb") as raw:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DefinitionError("the input file is no plain file")
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        try:
            columns, width, rows = _json_rows(plan, text) if plan.format == "jsonl" else _table_rows(plan, text)
        except csv.Error as error:
            raise DefinitionError("the input file cannot be read", why=str(error)) from None
        except UnicodeDecodeError:
            raise DefinitionError("the input file is not UTF-8") from None
        stop = plan.skip_rows + plan.max_rows if plan.max_rows else None
        yield Source(columns, width, islice(rows, plan.skip_rows, stop), plan.batch_size)


def insert_statement(plan: Plan, columns: Sequence[str], width: int, dialect: Dialect) -> str:
    """Return the INSERT of one row, with a placeholder for each value."""
    is_sqlite = dialect is Dialect.SQLITE
    places = ", ".join("?" if is_sqlite else f"${n}" for n in range(1, width + 1))
    named = f" ({', '.join(quote(name) for name in columns)})" if columns else ""
    target = f" ({', '.join(quote(name) for name in plan.conflict_target)})" if plan.conflict_target else ""
    word, tail = "INSERT", ""
    if plan.on_conflict == "ignore":
        word, tail = (
            ("INSERT OR IGNORE", "") if is_sqlite and not target else ("INSERT", f" ON CONFLICT{target} DO NOTHING")
        )
    elif plan.on_conflict == "replace" and not target:
        word, tail = ("INSERT OR REPLACE", "") if is_sqlite else ("INSERT", " ON CONFLICT DO NOTHING")
    elif plan.on_conflict == "replace":
        changed = plan.update_columns or tuple(name for name in columns if name not in plan.conflict_target)
        sets = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in changed)
        tail = f" ON CONFLICT{target} DO UPDATE SET {sets}" if sets else f" ON CONFLICT{target} DO NOTHING"
    return f"{word} INTO {quote(plan.table)}{named} VALUES ({places}){tail}"


Rows = tuple[Sequence[str], int, Iterator[Sequence[Any]]]


def _table_rows(plan: Plan, text: IO[str]) -> Rows:
    reader = csv.reader(_lines(text), delimiter=plan.delimiter, strict=True)
    filled = (row for row in reader if row)
    first: list[str] | None = None
    if plan.has_header:
        header = next(filled, None)
        if header is None:
            return plan.columns or (), len(plan.columns), iter(())
        columns = plan.columns or tuple(name.strip() for name in header)
    else:
        first = next(filled, None)
        columns = plan.columns
    width = len(columns) or len(first or ())

    def rows() -> Iterator[Sequence[Any]]:
        if first is not None:
            yield checked(first)
        for row in filled:
            yield checked(row)

    def checked(row: list[str]) -> list[str | None]:
        if len(row) != width:
            raise DefinitionError(
                f"line {reader.line_num} of the input file has {len(row)} fields", why=f"{width} are expected"
            )
        return [None if value in plan.null_values else value for value in row]

    return columns, width, rows()


def _json_rows(plan: Plan, text: IO[str]) -> Rows:
    objects = _objects(text)
    first = next(objects, None)
    if first is None:
        return plan.columns, len(plan.columns), iter(())
    columns = plan.columns or tuple(first[1])

    def rows() -> Iterator[Sequence[Any]]:
        yield row(*first)
        for line, item in objects:
            yield row(line, item)

    def row(line: int, item: Mapping[str, Any]) -> list[Any]:
        extra = [] if plan.columns else [name for name in item if name not in columns]
        if extra:
            raise DefinitionError(
                f"line {line} of the input file has a key that the first has not",
                why=f"{extra[0][:80]!r}; list `columns`",
            )
        return [_json_value(item.get(name), plan) for name in columns]

    return columns, len(columns), rows()


def _json_value(value: Any, plan: Plan) -> Any:
    if isinstance(value, str):
        return None if value in plan.null_values else value
    return formats.compact_json(value) if isinstance(value, dict | list) else value


def _objects(text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DefinitionError(f"line {number} of the input file is not JSON", why=str(error)) from None
        if not isinstance(item, dict) or not item:
            raise DefinitionError(f"line {number} of the input file is no JSON object with keys")
        yield number, item


def _lines(text: IO[str]) -> Iterator[str]:
    """Yield lines, none of which may fill the memory."""
    while line := text.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise LimitExceeded("a line of the input file is too long", why=f"more than {MAX_LINE} characters")
        yield line
