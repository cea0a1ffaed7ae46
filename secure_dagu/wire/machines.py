"""The machines of `secure_dagu.v1` between messages and values, for both ends."""

from __future__ import annotations

from datetime import UTC, datetime

from secure_dagu.dispatch.operating import LinkView, WorkerState, WorkerView
from secure_dagu.errors import InvalidRequest
from secure_dagu.wire import codec, fields
from secure_dagu.wire.pb import coordinator_pb2 as pb
from secure_dagu.wire.pb import extensions_pb2 as ext

MAX_VERSION = 64
_STATES = frozenset(WorkerState)


def machine_message(view: WorkerView) -> ext.Machine:
    """Write one worker."""
    return ext.Machine(
        worker=codec.workers_message([view.info]).workers[0],
        state=view.state.value,
        identity=view.identity,
        serial=view.serial,
        issuer=view.issuer,
        not_after=fields.milliseconds(view.cert_not_after),
        tls_version=view.tls_version,
        cipher=view.cipher,
        group=view.group,
        address=view.remote_address,
        connected_since=fields.milliseconds(view.connected_since),
        version=view.version,
        is_lost=view.is_lost,
        held_tasks=view.held_tasks,
    )


def machine_of(message: ext.Machine) -> WorkerView:
    """Read one worker."""
    info = codec.workers_of(pb.GetWorkersResponse(workers=[message.worker]))[0]
    return WorkerView(
        info=info,
        state=WorkerState(message.state) if message.state in _STATES else WorkerState.ACTIVE,
        identity=fields.line(message.identity, "identity", limit=1024),
        serial=fields.line(message.serial, "serial"),
        issuer=fields.line(message.issuer, "issuer"),
        cert_not_after=fields.from_milliseconds(message.not_after),
        tls_version=fields.line(message.tls_version, "tls_version"),
        cipher=fields.line(message.cipher, "cipher"),
        group=fields.line(message.group, "group"),
        remote_address=fields.line(message.address, "address"),
        connected_since=fields.from_milliseconds(message.connected_since),
        version=fields.line(message.version, "version"),
        is_lost=message.is_lost,
        held_tasks=message.held_tasks,
    )


def link_message(view: LinkView) -> ext.LinkInfo:
    """Write one connection."""
    return ext.LinkInfo(
        identity=view.identity,
        role=view.role,
        address=view.address,
        tls_version=view.tls_version,
        cipher=view.cipher,
        group=view.group,
        serial=view.serial,
        not_after=fields.milliseconds(view.cert_not_after),
        opened_at=fields.milliseconds(view.opened_at),
    )


def link_of(message: ext.LinkInfo) -> LinkView:
    """Read one connection."""
    return LinkView(
        identity=fields.line(message.identity, "identity", limit=1024),
        role=fields.line(message.role, "role"),
        address=fields.line(message.address, "address"),
        tls_version=fields.line(message.tls_version, "tls_version"),
        cipher=fields.line(message.cipher, "cipher"),
        group=fields.line(message.group, "group"),
        serial=fields.line(message.serial, "serial"),
        cert_not_after=fields.from_milliseconds(message.not_after),
        opened_at=fields.from_milliseconds(message.opened_at) or datetime.fromtimestamp(0, UTC),
    )


def version_of(text: str) -> str:
    """Read a version that a worker says of itself."""
    if not text.isascii():
        raise InvalidRequest("version is not usable", why="it is not ASCII")
    return fields.line(text, "version", limit=MAX_VERSION)
