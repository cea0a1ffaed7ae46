"""`secure-dagu pki rotate`: replace the CA in phases, without a refused connection."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import output, passphrases, pki

if TYPE_CHECKING:
    from secure_dagu.pki.rotation_state import Report, State

HELP = "replace the CA in phases: prepare, activate, retire, finish; rollback; status"
EXAMPLE = "secure-dagu pki rotate prepare"
_PHASES = ("prepare", "activate", "retire", "finish", "rollback", "status")
_NEXT = {
    "prepare": "Every peer wants the new ca.crt before the next step: those that renew get it, others need a copy.\n"
    "Next: secure-dagu pki rotate activate",
    "activate": "The new CA signs. Workers that renew by themselves move over; `rotate status` says who has not.\n"
    "Next: secure-dagu pki rotate retire",
    "retire": "The old CA is refused everywhere that reads this ca.crt.\nNext: secure-dagu pki rotate finish",
    "finish": "The rotation is complete.",
    "rollback-activate": "The old CA signs again; both are trusted. `rollback` once more forgets the new one.",
    "rollback-prepare": "The new CA is gone; everything is as before.",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("phase", metavar="PHASE", choices=_PHASES, help=", ".join(_PHASES))
    parser.add_argument(
        "--force", action="store_true", help="retire or rollback although somebody depends on the CA that goes"
    )
    parser.add_argument("--pkcs11", metavar="URI", help="prepare: make the new key in a token")
    passphrases.add_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Do one phase, or say how it stands. A phase that was interrupted goes on."""
    from secure_dagu.pki.directory import KeyPlace
    from secure_dagu.pki.rotation import Rotation

    ask = passphrases.source(args)
    rotation = Rotation(directory, passphrase=ask)
    if args.phase == "status":
        _print_report(rotation.report(now=now), as_json=args.json)
        return 0
    _record(args)
    if args.phase == "prepare":
        key = KeyPlace(token=args.pkcs11, passphrase=ask() if ask is not None else None) if args.pkcs11 else None
        state = rotation.prepare(now=now, key=key)
    elif args.phase == "activate":
        state = rotation.activate(now=now, actor=pki.actor())
    elif args.phase == "retire":
        state = rotation.retire(now=now, force=args.force)
    elif args.phase == "finish":
        state = rotation.finish(now=now)
    else:
        state = rotation.rollback(now=now, force=args.force, actor=pki.actor())
    if args.json:
        output.print_json(_state(state))
        return 0
    print(f"{state.phase.value} done: old CA {state.old[:16]}, new CA {state.new[:16] or '-'}")
    output.say(_NEXT[state.phase.value])
    return 0


def _record(args: argparse.Namespace) -> None:
    from secure_dagu.assembly.recording import rotation_phase

    args.record(rotation_phase(args.phase))


def _state(state: State | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "phase": state.phase.value, "done": state.is_done, "old": state.old, "new": state.new, "began": state.began,
    }  # fmt: skip


def _print_report(report: Report, *, as_json: bool) -> None:
    from msgspec.structs import asdict

    if as_json:
        output.print_json(
            {
                "rotation": _state(report.state),
                "holders": [asdict(holder) for holder in report.holders],
                "behind": [f"{holder.role}/{holder.name}" for holder in report.behind],
            }
        )
        return
    if report.state is None:
        print("no rotation is under way")
        return
    state = report.state
    print(f"{state.phase.value} {'done' if state.is_done else 'INTERRUPTED: run it again'}, begun {state.began}")
    width = max([4, *(len(holder.name) for holder in report.holders)])
    print(f"{'ROLE':<12} {'NAME':<{width}} {'CA':<6} {'SEEN WITH':<10} UNTIL")
    for holder in report.holders:
        print(
            f"{holder.role:<12} {holder.name:<{width}} {holder.ca:<6} {holder.seen or '-':<10} {holder.not_after[:16]}Z"
        )
    if report.behind:
        output.say(f"{len(report.behind)} would be locked out if the old CA were retired now")
