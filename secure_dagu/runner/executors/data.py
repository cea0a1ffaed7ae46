"""`data.convert` and `data.pick`: JSON, YAML, CSV, TSV and text (workflow language, section 4.4)."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from secure_dagu.dag import formats, nodes
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import jq_filter
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.masking import raw

FORMATS = ("json", "yaml", "csv", "tsv", "text")
MAX_OUTPUT = 64 * 2**20
MAX_COLUMNS = 10_000
_ODD_BREAK = re.compile("[\r\x85\u2028\u2029]")
_OLD_WORD = re.compile(r"(?i)yes|no|on|off|[-+]?\d+(?::[0-5]?\d)+")
"""Text that readers of YAML 1.1, which are many, take for a boolean, or for a number to the base of 60."""


async def convert(context: StepContext) -> Done:
    """Print a document in another format."""
    options = _options(context)

    async def work() -> Done:
        source, target = options.choice("from", FORMATS, ""), options.choice("to", FORMATS, "")
        text = await asyncio.to_thread(lambda: _written(_value(context, options, source), target, options))
        context.stdout(raw(text))
        return SUCCESS

    return await unless_stopped(context.stop, work())


async def pick(context: StepContext) -> Done:
    """Print what a jq path selects."""
    options = _options(context)
    if options.boolean("raw") and "to" in options:
        raise DefinitionError("with.raw and with.to exclude each other")
    source = options.choice("from", FORMATS, "")
    target = options.choice("to", FORMATS, "json")
    value = await asyncio.to_thread(lambda: _value(context, options, source))
    found = await jq_filter.results(context, options.needed("select"), value, MAX_OUTPUT)
    if isinstance(found, Done):
        return found
    if options.boolean("raw"):
        texts = [f"{'null' if item is None else formats.as_text(item)}\n" for item in found]
    elif target in ("csv", "tsv") and len(found) != 1:
        texts = [_written(found, target, options)]
    else:
        texts = [_written(item, target, options) for item in found]
    context.stdout(raw("".join(texts)))
    return SUCCESS


def _options(context: StepContext) -> Options:
    return Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))


# ------------------------------------------------------------------------------------------------------------- reading


def _value(context: StepContext, options: Options, form: str) -> Any:
    """Return what the input says: the text of `data` or of the file `input`; a `data` that is no text is the value."""
    if "input" in options:
        text = jq_filter.read_file(context, options.needed("input"))
    else:
        data = options.any("data")
        if not isinstance(data, str):
            return data
        text = data
    return _READERS[form](text, options)


def _from_json(text: str, options: Options) -> Any:
    try:
        return json.loads(text, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise DefinitionError("the input is not JSON", why=str(error)) from None


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def _from_yaml(text: str, options: Options) -> Any:
    return nodes.data(text, name="the input")  # bounded: aliases, depth, size


def _from_table(separator: str) -> Callable[[str, Options], Any]:
    def read(text: str, options: Options) -> Any:
        try:
            rows = [row for row in csv.reader(io.StringIO(text), delimiter=_delimiter(options, separator)) if row]
        except csv.Error as error:
            raise DefinitionError("the input is no table", why=str(error)) from None
        names = options.texts("columns")
        if options.boolean("has_header", default=True):
            header = rows.pop(0) if rows else []
            names = [name.removeprefix("\ufeff") if at == 0 else name for at, name in enumerate(header)]
        elif not names:
            return rows
        if len(set(names)) != len(names):
            raise DefinitionError("the input is no table", why="two columns have one name")
        for number, row in enumerate(rows, 1):
            if len(row) > len(names):
                why = f"row {number} has {len(row)} fields, there are {len(names)} columns"
                raise DefinitionError("the input is no table", why=why)
        return [dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=True)) for row in rows]

    return read


def _delimiter(options: Options, default: str) -> str:
    text = options.text("delimiter") or default
    text = "\t" if text == "\\t" else text
    if len(text) != 1 or text in '"\r\n':
        raise DefinitionError("with.delimiter must be one character")
    return text


_READERS: Mapping[str, Callable[[str, Options], Any]] = {
    "json": _from_json,
    "yaml": _from_yaml,
    "csv": _from_table(","),
    "tsv": _from_table("\t"),
    "text": lambda text, options: text,
}

# ------------------------------------------------------------------------------------------------------------- writing


def _written(value: Any, form: str, options: Options) -> str:
    text = _WRITERS[form](value, options)
    if len(text) > MAX_OUTPUT:
        raise LimitExceeded("the output is too large", why=f"the limit is {MAX_OUTPUT} characters")
    return text if not text or text.endswith("\n") else text + "\n"


def _to_json(value: Any, options: Options) -> str:
    if formats.has_no_number(value):
        raise DefinitionError("the value is not JSON", why="it holds a number that is none")
    return formats.pretty_json(value, 2)


def _to_yaml(value: Any, options: Options) -> str:
    from ruamel.yaml import YAML  # only this format needs the writer
    from ruamel.yaml.representer import RoundTripRepresenter
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

    class Representer(RoundTripRepresenter):
        """Write `null` where a document of ruamel has nothing."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))

    def quoted(item: Any) -> Any:
        """Have line breaks escaped that a reader would take for others, and words quoted that one of YAML 1.1 would."""
        if isinstance(item, str):
            if _ODD_BREAK.search(item):
                return DoubleQuotedScalarString(item)
            return SingleQuotedScalarString(item) if _OLD_WORD.fullmatch(item) else item
        if isinstance(item, Mapping):
            return {quoted(key): quoted(inner) for key, inner in item.items()}
        return [quoted(inner) for inner in item] if isinstance(item, list) else item

    writer = YAML()
    writer.Representer = Representer
    writer.width = 2**31
    stream = io.StringIO()
    writer.dump(quoted(value), stream)
    return stream.getvalue().removesuffix("...\n")


def _to_table(separator: str) -> Callable[[Any, Options], str]:
    def write(value: Any, options: Options) -> str:
        rows = value if isinstance(value, list) else [value]
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter=_delimiter(options, separator), lineterminator="\n")
        names = options.texts("columns")
        if rows and all(isinstance(row, Mapping) for row in rows):
            names = names or list(dict.fromkeys(name for row in rows for name in row))
            if len(names) > MAX_COLUMNS:  # times the rows is what it takes
                raise LimitExceeded("the table is too wide", why=f"the limit is {MAX_COLUMNS} columns")
            rows = [[row.get(name) for name in names] for row in rows]
        elif any(isinstance(row, Mapping) for row in rows):
            raise DefinitionError("the value is no table", why="some rows are maps and some are not")
        if names and options.boolean("headers", default=True):
            writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(cell) for cell in (row if isinstance(row, list) else [row])])
        return stream.getvalue()

    return write


def _cell(value: Any) -> str:
    return "" if value is None else formats.as_text(value)


def _to_text(value: Any, options: Options) -> str:
    return "" if value is None else formats.as_text(value)


_WRITERS: Mapping[str, Callable[[Any, Options], str]] = {
    "json": _to_json,
    "yaml": _to_yaml,
    "csv": _to_table(","),
    "tsv": _to_table("\t"),
    "text": _to_text,
}
