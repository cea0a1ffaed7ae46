"""`secure-dagu validate`: whether a workflow file is right; nothing is executed (workflow language, section 1.2)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output, workflow
from secure_dagu.errors import DefinitionError, InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.dag.validate import Validation

SUMMARY = "Check a workflow file; nothing is executed."
EXAMPLE = "secure-dagu validate etl.yaml"
_PLACE = re.compile(r"(?P<file>.*?):(?P<line>\d+):(?P<column>\d+): (?P<message>.*)", re.DOTALL)
_NEAREST = re.compile(r"did you mean \"?(?P<nearest>[^?\"]+)")
_EXPECTED = re.compile(r"expected (?P<expected>.+?)(?:, (?:found|but got) .*)?\Z", re.DOTALL)


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", nargs="*", help="the workflow file, or the name of a known workflow")
    parser.add_argument(
        "--show-unresolved", action="store_true", help="tell as well which references only a run can resolve"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document with everything that was found")


async def run(args: argparse.Namespace) -> int:
    """Say what is wrong, if anything is."""
    if len(args.file) != 1:
        raise InvalidRequest(f"accepts 1 arg(s), received {len(args.file)}")
    name = args.file[0]
    loaded = workflow.settings_of(args)
    from secure_dagu.dag.validate import Validation, validate
    from secure_dagu.local import definitions
    from secure_dagu.runner.files import schema_reader

    path = definitions.candidate(name, loaded.settings.paths.dags_dir)
    base = workflow.base_config_of(loaded)
    try:
        found = validate(
            definitions.read(path),
            file=str(path),
            base_config=base,
            show_unresolved=args.show_unresolved,
            read_schema=schema_reader(path.parent, Path.cwd()),
        )
    except DefinitionError as error:  # the file cannot be read
        found = Validation(errors=(str(error),))
    if args.json:
        output.print_json(_document(name, found))
    elif found.errors:
        head = f"Error: Validation failed for {name}"
        output.say(output.visible("\n".join([head, *(f"- {line}" for line in found.errors)])))
    else:
        said = workflow.echo_of(args, loaded)
        for line in found.warnings:
            said("WARN", line, {"file": name})
        for notice in found.notices:
            said(notice.level, notice.text, {"file": name, "reason": notice.reason})
    return 1 if found.errors else 0


def _document(name: str, found: Validation) -> dict[str, Any]:
    """Return the stable shape of what was found."""
    return {
        "file": name,
        "valid": not found.errors,
        "errors": [_as_json(line) for line in found.errors],
        "warnings": [_as_json(line) for line in found.warnings],
        "notices": [
            {
                "file": item.position.file,
                "line": item.position.line,
                "column": item.position.column,
                "level": str(item.level),
                "field": item.field,
                "token": item.token,
                "reason": item.reason,
                "message": item.text,
            }
            for item in found.notices
        ],
    }


def _as_json(text: str) -> dict[str, Any]:
    """Return a message with what is known of its place, of what was expected, and of what was meant."""
    found = _PLACE.fullmatch(text)
    if not found:
        return {"message": text}
    message = found["message"]
    place = {"file": found["file"], "line": int(found["line"]), "column": int(found["column"])}
    hits = (pattern.search(message) for pattern in (_NEAREST, _EXPECTED))
    known = {key: value for hit in hits if hit for key, value in hit.groupdict().items()}
    return {**place, "message": message, **known}
