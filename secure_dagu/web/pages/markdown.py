"""A plain subset of Markdown as blocks of pieces, which a template writes out as text. Pure.

No markup comes from here and none passes through: what is no heading, list, quote, code or emphasis stays text.
"""

from __future__ import annotations

import re

from msgspec import Struct

_MAX_BLOCKS = 5000
_HEADING = re.compile(r"(#{1,6})\s+(.*)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+(.*)")
_PIECE = re.compile(
    r"`(?P<code>[^`\n]{1,1000})`"
    r"|\*\*(?P<strong>[^*\n]{1,1000})\*\*"
    r"|\*(?P<em>[^*\s][^*\n]{0,1000})\*"
    r"|\[(?P<label>[^\]\n]{1,500})\]\((?P<url>https?://[^\s()<>\"']{1,2000})\)"
)


class Piece(Struct, frozen=True, kw_only=True):
    """A stretch of text. `kind` is `text`, `code`, `strong`, `em` or `link`."""

    kind: str
    text: str
    url: str = ""


class Block(Struct, frozen=True, kw_only=True):
    """One block. `kind` is `h1` … `h6`, `p`, `li`, `quote`, `code` or `rule`."""

    kind: str
    pieces: tuple[Piece, ...] = ()
    text: str = ""


def blocks(source: str) -> list[Block]:
    """Return the blocks of a document, at most 5000."""
    found: list[Block] = []
    paragraph: list[str] = []
    code: list[str] | None = None

    def end_paragraph() -> None:
        if paragraph:
            found.append(Block(kind="p", pieces=pieces(" ".join(paragraph))))
            paragraph.clear()

    for line in source.splitlines():
        if len(found) >= _MAX_BLOCKS:
            break
        bare = line.strip()
        if bare.startswith("```"):
            if code is None:
                end_paragraph()
                code = []
            else:
                found.append(Block(kind="code", text="\n".join(code)))
                code = None
        elif code is not None:
            code.append(line)
        elif not bare:
            end_paragraph()
        elif heading := _HEADING.fullmatch(bare):
            end_paragraph()
            found.append(Block(kind=f"h{len(heading[1])}", pieces=pieces(heading[2])))
        elif set(bare) <= {"-"} and len(bare) >= 3:
            end_paragraph()
            found.append(Block(kind="rule"))
        elif item := _ITEM.fullmatch(line):
            end_paragraph()
            found.append(Block(kind="li", pieces=pieces(item[1])))
        elif bare.startswith(">"):
            end_paragraph()
            found.append(Block(kind="quote", pieces=pieces(bare[1:].strip())))
        else:
            paragraph.append(bare)
    end_paragraph()
    if code is not None:
        found.append(Block(kind="code", text="\n".join(code)))
    return found


def pieces(line: str) -> tuple[Piece, ...]:
    """Return the stretches of one line; a link leads to http or https and nowhere else."""
    found: list[Piece] = []
    at = 0
    for match in _PIECE.finditer(line):
        if match.start() > at:
            found.append(Piece(kind="text", text=line[at : match.start()]))
        if match["label"]:
            found.append(Piece(kind="link", text=match["label"], url=match["url"]))
        else:
            kind = next(name for name in ("code", "strong", "em") if match[name])
            found.append(Piece(kind=kind, text=match[kind]))
        at = match.end()
    if at < len(line):
        found.append(Piece(kind="text", text=line[at:]))
    return tuple(found)
