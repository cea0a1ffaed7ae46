"""The compliance report as the REST API says it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NotRequired

from msgspec import Struct
from typing_extensions import TypedDict

from secure_dagu import __version__
from secure_dagu.audit.chain import Place
from secure_dagu.security.compliance import Result
from secure_dagu.security.exceptions import WEAKNESSES, Exemption
from secure_dagu.web.api.shapes import moment

MAX_EXCEPTIONS = 1000
"""Exceptions that one report names; `totalExceptions` counts all."""


class Evidence(Struct, frozen=True, kw_only=True):
    """What a process knows of itself for a report."""

    at: datetime
    host: str
    results: tuple[Result, ...]
    exemptions: tuple[Exemption, ...]
    """Those of the ledger that are valid now."""
    ledger_problem: str = ""
    """Why the ledger says nothing; empty: it was read whole."""
    head: Place
    """Where the chain of this process's audit log ends."""
    checked_at: datetime
    checked: Place
    """Where it ended when it was last checked."""
    is_checked_whole: bool
    """That was from its first record on; False: of its newest file only, which opening it does."""


class FrameworkReferences(TypedDict):
    """The requirements that a control is evidence for."""

    pciDss4: list[str]
    soc2: list[str]
    nist80053: list[str]
    iso27001: list[str]


class ControlShape(TypedDict):
    """How one control stands; `fix` is there where it fails."""

    id: str
    status: Literal["pass", "fail"]
    lookedAt: str
    why: str
    fix: NotRequired[str]
    references: FrameworkReferences


class OpenException(TypedDict):
    """A weakening that somebody answers for."""

    id: str
    kind: str
    setting: str
    means: str
    owner: str
    reason: str
    grantedBy: str
    grantedAt: str
    until: str


class ChainPosition(TypedDict):
    """Where the audit log of this process stands, when it was last checked and how far it went then.

    `checkedWhole` is false from the start of the process to the end of its first verification: until then only the
    newest file has been checked.
    """

    entries: int
    headHash: str
    checkedAt: str
    checkedEntries: int
    checkedHash: str
    checkedWhole: bool


class ComplianceReport(TypedDict):
    """How the server that answers stands now."""

    time: str
    version: str
    host: str
    passed: bool
    controls: list[ControlShape]
    exceptions: list[OpenException]
    totalExceptions: int
    exceptionsProblem: NotRequired[str]
    audit: ChainPosition


def report(found: Evidence) -> ComplianceReport:
    """Return the report."""
    shape: ComplianceReport = {
        "time": moment(found.at),
        "version": __version__,
        "host": found.host,
        "passed": all(result.passed for result in found.results),
        "controls": [_control(result) for result in found.results],
        "exceptions": [_exception(item) for item in found.exemptions[:MAX_EXCEPTIONS]],
        "totalExceptions": len(found.exemptions),
        "audit": {
            "entries": found.head.seq,
            "headHash": found.head.hash,
            "checkedAt": moment(found.checked_at),
            "checkedEntries": found.checked.seq,
            "checkedHash": found.checked.hash,
            "checkedWhole": found.is_checked_whole,
        },
    }
    if found.ledger_problem:
        shape["exceptionsProblem"] = found.ledger_problem
    return shape


def _control(result: Result) -> ControlShape:
    of = result.references
    shape: ControlShape = {
        "id": result.control.value,
        "status": "pass" if result.passed else "fail",
        "lookedAt": result.looked_at,
        "why": result.why,
        "references": {
            "pciDss4": list(of.pci_dss_4), "soc2": list(of.soc_2), "nist80053": list(of.nist_800_53),
            "iso27001": list(of.iso_27001),
        },
    }  # fmt: skip
    if result.fix:
        shape["fix"] = result.fix
    return shape


def _exception(item: Exemption) -> OpenException:
    weakness = WEAKNESSES[item.kind]
    return {
        "id": item.id, "kind": item.kind.value, "setting": weakness.setting, "means": weakness.means,
        "owner": item.owner, "reason": item.reason, "grantedBy": item.by, "grantedAt": moment(item.granted_at),
        "until": moment(item.until),
    }  # fmt: skip
