"""What a doctor finds, as lines for people and as our stable JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output

if TYPE_CHECKING:
    from secure_dagu.security.checkup import Check


def as_json(check: Check) -> dict[str, Any]:
    """Return the stable shape of a check."""
    return {
        "check": check.check.value,
        "state": check.state.value,
        "code": check.code,
        "target": check.target,
        "what": check.what,
        "why": check.why,
        "fix": check.fix,
    }


def show(check: Check) -> None:
    """Print a check as soon as it is made."""
    # A good line names a file shortly; one that somebody must act on names it whole.
    named = check.target.rpartition("/")[2] if check.code == "ok" else check.target
    target = f"{named}: " if named and named not in check.what else ""
    code = f" [{check.code}]" if check.code != "ok" and f"({check.code})" not in check.what else ""
    print(output.visible(f"{_STATES[check.state.value]}  {check.check.value:<11}  {target}{check.what}{code}"))
    for word, text in (("why", check.why), ("fix", check.fix)):
        if text:
            print(output.visible(f"{'':<19}{word}: {text}"))
    sys.stdout.flush()


_STATES = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def summary(found: list[Check]) -> str:
    """Return the last line: what is at fault, or that nothing is."""
    from secure_dagu.security.checkup import State

    bad = next((check for check in found if check.state is State.FAIL), None)
    if bad is not None:
        return f"\nThe fault is in the layer {bad.check.value} [{bad.code}]."
    warnings = sum(check.state is State.WARN for check in found)
    return "\nEverything works." if not warnings else f"\nIt works, with {warnings} warning{'s'[: warnings != 1]}."
