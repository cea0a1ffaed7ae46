"""The gRPC server: build it, bind it to a private unix socket, drain it. TCP and TLS are the business of `link`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
import structlog

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import ClaimToken
from secure_dagu.errors import SecureDaguError
from secure_dagu.wire.extensions import Extensions, Health
from secure_dagu.wire.fields import MAX_MESSAGE
from secure_dagu.wire.interceptors import Gate
from secure_dagu.wire.servicer import Servicer

log = structlog.get_logger()

MIN_KEEPALIVE = timedelta(seconds=1)

OPTIONS = (
    # Above ~1,000 calls that have not started the core answers CANCELLED at random; workers open hundreds of polls.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The core probes bandwidth with pings as messages arrive, and each crosses the edge both ways. With a fixed window
    # uploads measured the same, and the p99 of 2,000 workers' heartbeats a third lower (one run each).
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 2**20),
)


ACCEPTING: Final = 8
"""How many gRPC servers share the links of a coordinator.

A server takes up one new call at a time and asks its core for the next over two changes of threads: under load, calls
wait for that, and each turn of the event loop finds one call to do. Processor time a call of 2,000 workers that beat
once a second, with 1, 2, 4 and 8 servers: 540, 400, 400 and 330 us (three runs each on a busy machine).
"""


class WireServer:
    """The running servers."""

    def __init__(self, *, gate: Gate, servicer: Servicer, health: Health) -> None:
        self._gate = gate
        self._servicer = servicer
        self._health = health

    def drain(self) -> None:
        """Stop handing out work: health says NOT_SERVING, open polls are answered with nothing, new ones refused.

        Everything else goes on until `serve` is left, so that workers can still report.
        """
        self._health.set_not_serving()
        self._gate.is_draining = True
        log.info("server.draining", polls=self._servicer.release_polls())

    def ask_again(self) -> None:
        """Answer open polls with nothing: pollers come back at once and are judged anew."""
        self._servicer.release_polls()


@asynccontextmanager
async def serve(
    *,
    socket_paths: Sequence[str],
    desk: Coordinator,
    gate: Gate,
    advertise: Sequence[str] = (),
    keepalive: timedelta = timedelta(seconds=20),
    grace_s: float = 2.0,
) -> AsyncIterator[WireServer]:
    """Serve `desk` behind `gate` at unix sockets, by a gRPC server each (`ACCEPTING`).

    On leaving, drain, wait `grace_s` for open calls, then cut.

    `advertise` are the addresses that tasks name; a doctor asks for them. `keepalive`: how often a connection without
    traffic is pinged; by the server, for a server may count pings as abuse, and no client does.

    The folder of the sockets must be private to this user: who can reach one skips the TLS edge, though not the gate,
    which knows no peer behind such a connection.
    """
    withdrawn: asyncio.Queue[ClaimToken] = asyncio.Queue()
    servicer = Servicer(desk, withdraw=withdrawn.put_nowait)
    health = Health(advertise)
    interval_ms = int(max(keepalive, MIN_KEEPALIVE) / timedelta(milliseconds=1))
    table = _Table(gate, servicer, health, Extensions(desk))
    servers: list[grpc.aio.Server] = []
    for path in socket_paths:
        server = grpc.aio.server(options=(*OPTIONS, ("grpc.keepalive_time_ms", interval_ms)))
        server.add_generic_rpc_handlers((table,))
        server.add_insecure_port(f"unix:{path}")
        servers.append(server)
    running = WireServer(gate=gate, servicer=servicer, health=health)
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        withdrawing = group.create_task(_withdraw(desk, withdrawn), name="withdraw undelivered claims")
        for server in servers:
            await server.start()
        try:
            yield running
        except Exception as error:
            failure = error
        finally:
            running.drain()
            async with asyncio.TaskGroup() as stopping:
                for server in servers:
                    stopping.create_task(server.stop(grace_s))
            withdrawing.cancel()
    if failure is not None:
        raise failure


class _Table(grpc.GenericRpcHandler):
    """Finds the wrapped handler of a path; what is not in the table gets the refusing one."""

    def __init__(self, gate: Gate, *tables: Servicer | Health | Extensions) -> None:
        self._gate = gate
        self._handlers = {method.path: gate.wrap(method) for table in tables for method in table.methods()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = handler_call_details.method
        return self._handlers.get(path) or self._gate.unknown(path)


async def _withdraw(desk: Coordinator, tokens: asyncio.Queue[ClaimToken]) -> None:
    while True:
        token = await tokens.get()
        try:
            await desk.withdraw(token)
        except SecureDaguError as error:
            log.warning("claim.not_withdrawn", **error.as_dict())  # it expires by itself
