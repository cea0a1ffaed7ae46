"""`secure-dagu pki inspect`: say everything that a certificate contains."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.cli import output, pki

if TYPE_CHECKING:
    from secure_dagu.pki.facts import Facts

HELP = "say everything that a certificate contains"
EXAMPLE = "secure-dagu pki inspect gpu-1"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("certificate", metavar="FILE|NAME", help="a PEM file, or a name in the standard place")
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Say it, for each certificate in the file."""
    from secure_dagu.pki.directory import find_certificate, ledger
    from secure_dagu.pki.facts import facts_of, read_certificates

    path = find_certificate(directory, args.certificate)
    every = [facts_of(certificate) for certificate in read_certificates(path)]
    entry = ledger(directory).find(every[0].serial)
    status = entry.status.value if entry is not None else "" if every[0].is_ca else "not in the ledger here"
    if args.json:
        first, *chain = [_document(facts, now) for facts in every]
        output.print_json({"file": str(path)} | first | {"ledger": status, "chain": chain})
        return 0
    _print([("file", str(path)), *_lines(every[0], now), ("ledger", status)])
    for facts in every[1:]:
        print()
        _print([("chain", facts.subject), *_lines(facts, now)])
    return 0


def _document(facts: Facts, now: datetime) -> dict[str, object]:
    from msgspec.structs import asdict  # --help needs none of it

    times = {
        "not_before": pki.iso(facts.not_before),
        "not_after": pki.iso(facts.not_after),
        "days_left": round((facts.not_after - now).total_seconds() / 86_400, 2),
    }
    return asdict(facts) | times


def _lines(facts: Facts, now: datetime) -> list[tuple[str, str]]:
    who = facts.identity or ("(a CA)" if facts.is_ca else "(none: peers refuse it unless a rule of theirs names it)")
    limit = "" if facts.path_length is None else f", {facts.path_length} CAs below it"
    return [
        ("identity", who if len(facts.uris) < 2 else f"(none: {len(facts.uris)} URI names)"),
        ("names", ", ".join(facts.names)),
        ("labels", ", ".join(facts.labels)),
        ("may", f"sign certificates{limit}" if facts.is_ca else ", ".join(f"be a {word}" for word in facts.usage)),
        ("only for", ", ".join(facts.permitted)),
        ("never for", ", ".join(facts.excluded)),
        (
            "valid",
            f"{facts.not_before:%Y-%m-%d %H:%M}Z to {facts.not_after:%Y-%m-%d %H:%M}Z "
            f"({pki.left(facts.not_after, now)})",
        ),
        ("subject", facts.subject),
        ("issuer", facts.issuer),
        ("key", f"{facts.key} ({', '.join(facts.key_usage)})"),
        ("signed", facts.signature),
        ("serial", facts.serial),
        ("SHA-256", facts.fingerprint),
        ("key hash", facts.key_fingerprint),
        ("key id", facts.key_id),
        ("issuer id", facts.issuer_key_id),
        ("CRL at", ", ".join(facts.crl_urls)),
        ("unknown", ", ".join(facts.unknown_extensions)),
        ("problem", "; ".join(facts.problems)),
    ]


def _print(lines: list[tuple[str, str]]) -> None:
    for word, text in lines:
        if text:
            print(output.visible(f"{word:<9} {text}"))
