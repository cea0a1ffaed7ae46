"""A whole coordinator behind its wall and its TLS edge, and callers that hold real certificates of its CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
from msgspec import Struct, field
from msgspec.structs import replace

from secure_dagu.assembly.coordinator import _Everything
from secure_dagu.dispatch.model import Role
from secure_dagu.link import context, private
from secure_dagu.link.listener import Listener, listen
from secure_dagu.link.register import Register
from secure_dagu.pki import directory, files
from secure_dagu.pki.profiles import Profile, load_profiles
from secure_dagu.security.grants import parse_grants
from secure_dagu.security.policy import STRICT, Policy
from secure_dagu.telemetry.rpc_series import RpcSeries
from secure_dagu.wire.interceptors import Denial, Gate
from secure_dagu.wire.server import ACCEPTING, WireServer, serve
from tests.coordinator.harness import House, ManualClock, Place
from tests.link.conftest import open_dialer

STREAM_UNARY = frozenset({"StreamLogs", "StreamArtifacts", "PutWorkspaceBundle"})
UNARY_STREAM = frozenset({"GetWorkspaceBundle", "WatchCancellations", "FollowRun", "ReadLog", "ReadArtifact", "Watch"})
PATIENCE_S = 10.0
NO_ANSWER_S = 1.0
"""How long a poll may wait before it counts as let in."""


class Answer(Struct, frozen=True):
    """What a call brought: its status, and its first message if there was one."""

    code: grpc.StatusCode
    text: str
    body: bytes = b""


class Fortress(Struct, kw_only=True):
    """One coordinator. `denied` and `would_deny` are what the wall told of."""

    root: Path
    house: House
    edge: Listener
    register: Register
    gate: Gate
    wire: WireServer
    folder: Path
    denied: list[Denial] = field(default_factory=list)
    would_deny: list[Denial] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self.edge.addresses[0][1]

    @asynccontextmanager
    async def caller(self, role: Role, name: str, labels: str = "") -> AsyncIterator[grpc.aio.Channel]:
        """Issue a certificate and open a channel with it."""
        pki = self.root / "pki"
        out = self.root / f"{role.value}-{name}"
        profile = load_profiles().roles[role]
        if role is Role.COORDINATOR:  # for calling it needs a certificate of its own, which no profile gives it yet
            profile = replace_usage(profile)
        made = directory.open_ca(pki).issue(profile, name, now=datetime.now(UTC), labels=parse_grants([labels]))
        files.make_private_directory(out)
        files.write(out, files.Pem("c.crt", made.certificate), replace=False)
        files.write(out, files.Pem("c.key", made.key, is_private=True), replace=False)
        policy = context.client_policy(cert=out / "c.crt", key=out / "c.key", ca=pki / "ca.crt")
        async with (
            open_dialer(policy, "localhost", self.port, self.folder) as dialer,
            grpc.aio.insecure_channel(
                dialer.target, options=[("grpc.default_authority", dialer.authority), ("grpc.enable_retries", 0)]
            ) as channel,
        ):
            async with asyncio.timeout(PATIENCE_S):
                await channel.channel_ready()
            yield channel


def replace_usage(profile: Profile) -> Profile:
    """Return a profile for a certificate that calls."""
    return replace(profile, usage="client", names=False)


async def call(channel: grpc.aio.Channel, method: str, *messages: bytes) -> Answer:
    """Call a method with raw messages."""
    name = method.rpartition("/")[2]
    limit = NO_ANSWER_S if name == "Poll" else PATIENCE_S
    try:
        if name in STREAM_UNARY:
            upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(method)
            return Answer(grpc.StatusCode.OK, "", await upload(_each(messages), timeout=limit))
        if name in UNARY_STREAM:
            ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
            running = ask(messages[0], timeout=limit)
            async for first in running:
                running.cancel()
                return Answer(grpc.StatusCode.OK, "", first)
            return Answer(grpc.StatusCode.OK, "")
        once: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return Answer(grpc.StatusCode.OK, "", await once(messages[0], timeout=limit))
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), error.details() or "")


async def _each(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@asynccontextmanager
async def fortress(root: Path, policy: Policy = STRICT) -> AsyncIterator[Fortress]:
    """Run one."""
    pki = root / "pki"
    directory.initialise(pki, advertised=["localhost"], trust_domain="secure-dagu", now=datetime.now(UTC))
    server = context.server_policy(
        cert=pki / "coordinator.crt", key=pki / "coordinator.key", client_ca=pki / "ca.crt", advertised=["localhost"]
    )
    denied: list[Denial] = []
    would_deny: list[Denial] = []
    register = Register()
    gate = Gate(
        peer_of=register.peer_of, recorder=RpcSeries("server"), denied=denied.append, would_deny=would_deny.append,
        policy=policy,
    )  # fmt: skip
    data = root / "data"
    data.mkdir()
    with private.folder() as folder:
        backends = [f"{folder}/grpc{number}" for number in range(ACCEPTING)]
        async with (
            asyncio.timeout(60),
            Place(data, ManualClock()).coordinator() as house,
            listen(
                bind=[("127.0.0.1", 0)], policy=server, backends=backends, directory=folder, register=register
            ) as edge,
            serve(socket_paths=backends, desk=_Everything(house.service), gate=gate, grace_s=0.2) as wire,
        ):
            yield Fortress(
                root=root, house=house, edge=edge, register=register, gate=gate, wire=wire, folder=folder,
                denied=denied, would_deny=would_deny,
            )  # fmt: skip
