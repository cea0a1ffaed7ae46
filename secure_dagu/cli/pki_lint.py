"""`secure-dagu pki lint`: hold certificates, or the whole directory, against the policy."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from secure_dagu.cli import output, pki

HELP = "hold certificates and the files around them against the policy; exit 1 if there are errors"
EXAMPLE = "secure-dagu pki lint"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "certificates", metavar="FILE|NAME", nargs="*", help="PEM files or names (default: everything in <home>/pki)"
    )
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Look, and say what was found."""
    from msgspec import to_builtins  # --help needs none of it

    from secure_dagu.pki.directory import find_certificate
    from secure_dagu.pki.lint import Level, lint_directory, lint_file
    from secure_dagu.pki.profiles import load_profiles

    profiles = load_profiles()
    if args.certificates:
        files = [find_certificate(directory, word) for word in args.certificates]
        found = [finding for file in files for finding in lint_file(file, profiles, now)]
    else:
        found = lint_directory(directory, profiles, now)
    has_errors = any(finding.level is Level.ERROR for finding in found)
    if args.json:
        output.print_json({"findings": to_builtins(found), "has_errors": has_errors})
    else:
        for finding in found:
            print(output.visible(f"{finding.level.value}: {finding.file}: {finding.what} [{finding.rule}]"))
        if not found:
            print("nothing found")
    return 1 if has_errors else 0
