"""Check entries of `output` and of `stdout.outputs.fields`: where a published value comes from (section 3.6). Pure."""

from __future__ import annotations

from secure_dagu.dag import nodes, reading, schema
from secure_dagu.dag.nodes import Mapping, Node, Scalar
from secure_dagu.dag.reading import Report

SOURCES = ("stdout", "stderr", "file")
DECODERS = ("text", "json", "yaml")


def check_entries(report: Report, node: Mapping, path: str) -> None:
    """Report entries that name a source wrongly; every other map or value is a literal."""
    for name, entry in node.entries.items():
        if isinstance(entry, Mapping) and (_word(entry.get("from")) in SOURCES or _is_picked(entry)):
            _check(report, entry, f"{path}.{name[:80]}")


def _word(node: Node | None) -> str:
    return nodes.scalar_text(node) if isinstance(node, Scalar) else ""


def _is_picked(entry: Mapping) -> bool:
    return bool(entry.entries) and entry.entries.keys() <= {"decode", "select"}


def _check(report: Report, entry: Mapping, path: str) -> None:
    reading.table(report, entry, path, schema.ENTRY)
    source = _word(entry.get("from")) or "stdout"
    if source == "file" and not _word(entry.get("path")).strip():
        report.problem(entry, path, "from: file needs path")
    elif source != "file" and "path" in entry.entries:
        report.problem(entry.keys["path"], f"{path}.path", "only with from: file")
    check_decoding(report, entry, path)


def check_decoding(report: Report, entry: Mapping, path: str) -> None:
    """Report a decoder that is not known, and a `select` that has nothing decoded to look into."""
    decode = reading.choice(report, entry.get("decode"), f"{path}.decode", DECODERS, "text")
    if entry.get("select") is not None and decode == "text":
        report.problem(entry.keys["select"], f"{path}.select", "needs decode: json or yaml")
