"""What the REST API says of the audit logs of this host. Everything here blocks: call it on a thread."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from secure_dagu.audit.chain import Record, text_of
from secure_dagu.audit.checkpoints import public_of, read_public
from secure_dagu.audit.events import Action, Detail
from secure_dagu.audit.reading import Wanted, newest, records
from secure_dagu.audit.verify import verify
from secure_dagu.errors import SecureDaguError
from secure_dagu.web.api.queries import BoundedQuery, Moment
from secure_dagu.web.gate import ACTIONS

_COLUMNS = ("timestamp", "source", "category", "action", "result", "username", "ipAddress", "resourceType",
            "resourceId", "reason", "details")  # fmt: skip
_LATELY = timedelta(days=7)
_HTTP_METHOD = re.compile(r"method:[A-Z]+ /")
"""What a refused request was for; calls between machines have `method:SERVICE/NAME`."""
_OLD_ACTIONS: Mapping[str, tuple[str, ...]] = {
    **{change.value: (action.value,) for change, action in ACTIONS.items()},
    "login": (Action.LOGIN,), "setup_admin": (Action.ACCOUNT_SET_UP,), "password_change": (Action.PASSWORD_CHANGED,),
    "password_reset": (Action.PASSWORD_RESET,), "user_create": (Action.USER_CREATED,),
    "user_update": (Action.USER_UPDATED,), "user_delete": (Action.USER_DELETED,),
    "api_key_create": (Action.KEY_CREATED,), "api_key_update": (Action.KEY_UPDATED,),
    "api_key_delete": (Action.KEY_DELETED,), "sub_dag_step_status_update": (Action.STEP_CHANGED,),
}  # fmt: skip
"""What Dagu calls an action, for tools that ask for it."""
_KEYS = (Action.KEY_CREATED, Action.KEY_UPDATED, Action.KEY_DELETED)
_OLD_CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "user": (*(action for action in Action if action.category in ("login", "account") and action not in _KEYS),),
    "api_key": _KEYS,
    "dag": ("dag", "run", "queue", "task"),
    "system": (Action.BASE_CONFIG_CHANGED, "process"),
}
"""The same for categories."""


class AuditEntry(TypedDict):
    """One record; `source` says which process wrote it, `surface` how who did it came there."""

    id: str
    timestamp: str
    category: str
    action: str
    source: str
    surface: str
    result: str
    resourceType: NotRequired[str]
    resourceId: NotRequired[str]
    credentialId: NotRequired[str]
    credentialType: NotRequired[str]
    userId: str
    username: str
    details: NotRequired[str]
    ipAddress: NotRequired[str]
    reason: NotRequired[str]


class AuditPage(TypedDict):
    """A page of records, newest first."""

    entries: list[AuditEntry]
    total: int


class Verification(TypedDict):
    """What verifying one log found."""

    log: str
    ok: bool
    entries: int
    headHash: str
    signed: int
    brokenAt: NotRequired[int]
    problem: NotRequired[str]


class Verified(TypedDict):
    """What verifying every log of this host found; `headHash` and `brokenAt` are of the first bad log, or the first."""

    ok: bool
    entries: int
    headHash: str
    brokenAt: NotRequired[int]
    logs: list[Verification]


class _Asked(Wanted, frozen=True, kw_only=True):
    """Which records, by what an entry says as well."""

    surface: str = ""
    credential_type: str = ""

    def matches(self, record: Record) -> bool:
        """Tell whether a record is asked for."""
        return (
            self.surface in ("", _surface(record))
            and self.credential_type in ("", record.details.get(Detail.VIA, "certificate" if record.serial else ""))
            and Wanted.matches(self, record)
        )


class AuditQuery(BoundedQuery):
    """Which records; without times, those of the last seven days."""

    category: str = Field("", max_length=64)
    action: str = Field("", max_length=64)
    source: str = Field("", max_length=64, description="coordinator, server, scheduler, command; rest: by this API.")
    surface: Literal["rest_api", "rpc", "cli", ""] = ""
    result: str = Field("", max_length=64, description="succeeded, denied or failed.")
    reason: str = Field("", max_length=64, description="Why it was denied or failed, such as cert_revoked.")
    resourceType: str = Field("", max_length=64)
    resourceId: str = Field("", max_length=512)
    credentialId: str = Field("", max_length=128, description="Beginning of a certificate's serial.")
    credentialType: str = Field("", max_length=64, description="password, api_key, basic, certificate or none.")
    ipAddress: str = Field("", max_length=128)
    userId: str = Field("", max_length=256)
    startTime: Moment | None = None
    endTime: Moment | None = None

    def wanted(self) -> Wanted:
        """Return what the logs are asked for."""
        start = self.startTime
        if start is None and self.endTime is None:
            start = datetime.now(UTC) - _LATELY
        actions = _OLD_ACTIONS.get(self.action, (self.action,)) if self.action else ()
        if self.category and not actions:
            actions = _OLD_CATEGORIES.get(self.category, (self.category,))
        target = f"{self.resourceType}:{self.resourceId}" if self.resourceType else self.resourceId
        return _Asked(
            surface="rest_api" if self.source == "rest" else self.surface,
            credential_type=self.credentialType,
            actions=actions,
            outcomes=(self.result,) if self.result else (),
            reason=self.reason,
            actor=self.userId,
            target=target,
            serial=self.credentialId.lower(),
            address=self.ipAddress,
            since=text_of(start) if start else "",
            until=text_of(self.endTime) if self.endTime else "",
        )

    def folders(self, folders: Mapping[str, Path]) -> dict[str, Path]:
        """Return the logs that are meant."""
        name = {"command": "commands", "rest": ""}.get(self.source, self.source)
        return {key: folder for key, folder in folders.items() if not name or key == name}


class AuditExportQuery(AuditQuery):
    """All of them."""

    format: Literal["jsonl", "csv"] = "jsonl"


class AuditPageQuery(AuditQuery):
    """A page of them."""

    limit: int = Field(100, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=100_000)


def page(folders: Mapping[str, Path], query: AuditPageQuery) -> AuditPage:
    """Return a page of records."""
    found = newest(query.folders(folders).values(), query.wanted(), limit=query.limit, offset=query.offset)
    return {"entries": [entry(record) for record in found.records], "total": found.total}


def entry(record: Record) -> AuditEntry:
    """Return a record as an entry."""
    kind, _, name = record.target.partition(":")
    shape: AuditEntry = {
        "id": f"{record.source}-{record.seq}",
        "timestamp": record.time,
        "category": record.action.partition(".")[0],
        "action": record.action,
        "source": record.source,
        "surface": _surface(record),
        "result": record.outcome,
        "userId": record.actor,
        "username": record.actor.rpartition("/")[2] or record.actor,
    }
    if name:
        shape["resourceType"], shape["resourceId"] = kind, name
    if record.serial:
        shape["credentialId"] = record.serial
    if via := record.details.get(Detail.VIA):
        shape["credentialType"] = str(via)
    if record.address:
        shape["ipAddress"] = record.address
    if record.reason:
        shape["reason"] = record.reason
    if record.details:
        shape["details"] = json.dumps(dict(record.details), ensure_ascii=False)
    return shape


def _surface(record: Record) -> str:
    if Detail.VIA in record.details or _HTTP_METHOD.match(record.target):  # who was let in nowhere came by no way
        return "rest_api"
    return "cli" if record.source == "command" else "rpc"


def export_jsonl(folders: Mapping[str, Path], query: AuditQuery) -> Iterator[bytes]:
    """Yield records as they are, so that the chain can be verified from the export."""
    for folder in query.folders(folders).values():
        for line, _ in records(folder, query.wanted()):
            yield line


def export_csv(folders: Mapping[str, Path], query: AuditQuery) -> Iterator[bytes]:
    """Yield records as CSV. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    yield _row(_COLUMNS)
    for folder in query.folders(folders).values():
        for _, record in records(folder, query.wanted()):
            shape = entry(record)
            yield _row([str(shape.get(column, "")) for column in _COLUMNS])


def verified(folders: Mapping[str, Path]) -> Verified:
    """Verify every log of this host that there is."""
    logs = [_verify(name, folder) for name, folder in folders.items() if any(folder.glob("*.jsonl"))]
    bad = next((log for log in logs if not log["ok"]), None)
    told = bad or (logs[0] if logs else None)
    shape: Verified = {
        "ok": bad is None,
        "entries": sum(log["entries"] for log in logs),
        "headHash": told["headHash"] if told else "",
        "logs": logs,
    }
    if bad is not None and "brokenAt" in bad:
        shape["brokenAt"] = bad["brokenAt"]
    return shape


def _verify(name: str, folder: Path) -> Verification:
    try:
        report = verify(folder, key=read_public(public_of(folder)))
    except SecureDaguError as error:
        return {"log": name, "ok": False, "entries": 0, "headHash": "", "signed": 0, "problem": error.what}
    shape: Verification = {
        "log": name,
        "ok": report.bad is None,
        "entries": report.records,
        "headHash": report.head,
        "signed": report.signed,
    }
    if report.bad is not None:
        shape["brokenAt"], shape["problem"] = report.bad.seq, f"{report.bad.kind}: {report.bad.text}"
    return shape


def _row(cells: list[str] | tuple[str, ...]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow([f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell for cell in cells])
    return out.getvalue().encode()
