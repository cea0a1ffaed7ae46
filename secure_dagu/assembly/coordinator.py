"""The coordinator's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from secure_dagu import __version__
from secure_dagu.assembly import (
    audit,
    compliance,
    copied,
    discovering,
    enrolment,
    exceptions,
    ledgered,
    own_renewal,
    reload,
    renewal,
    trust,
)
from secure_dagu.assembly.disk import Disk
from secure_dagu.assembly.edge import denied, describe, mode_of, server_events, would_deny
from secure_dagu.assembly.health import serve_health
from secure_dagu.assembly.process import settle, signals
from secure_dagu.assembly.weakenings import Weakenings
from secure_dagu.audit.log import AuditLog
from secure_dagu.config.load import Loaded
from secure_dagu.config.peers import Purpose
from secure_dagu.discovery.registry import Instance
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Owner, WorkerId
from secure_dagu.errors import Unavailable
from secure_dagu.link import listener, private
from secure_dagu.link.context import UnsafePlaintext
from secure_dagu.link.register import Register
from secure_dagu.security.admission import DenyReason
from secure_dagu.telemetry import metrics
from secure_dagu.wire import process

if TYPE_CHECKING:
    from secure_dagu.coordinator.service import Service
    from secure_dagu.dag.model import Definition


log = structlog.get_logger()


class Serving(Struct, frozen=True, kw_only=True):
    """A coordinator of this process, for what else runs in it."""

    coordinator: Coordinator
    """All its verbs; whoever calls them directly says as whom."""
    trail: AuditLog
    register: Register
    """Its live links."""


async def run_coordinator(loaded: Loaded) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: something is missing or cannot be used; nothing was served.
    """
    with signals() as stop:
        async with serving(loaded, stop):
            await stop.wait()


@contextlib.asynccontextmanager
async def serving(loaded: Loaded, stop: asyncio.Event) -> AsyncIterator[Serving]:
    """Serve while the context lasts. `stop`: set once no more work should be sent here.

    Raises:
        ConfigError: something is missing or cannot be used; nothing was served.
    """
    process.prepare()
    from secure_dagu.coordinator import service
    from secure_dagu.store import sql
    from secure_dagu.store.blobs import Blobs
    from secure_dagu.store.definitions import DefinitionFolder
    from secure_dagu.wire import server
    from secure_dagu.wire.interceptors import Denial, Gate

    settings = loaded.settings
    held = exceptions.admitted(loaded, Purpose.COORDINATOR)
    desk = enrolment.open_desk(loaded)
    for stem in ("coordinator", "operator"):
        renewal.finish_interrupted(loaded, stem)
    own_renewal.renew_ended(loaded, desk)
    watched = reload.coordinator_files(loaded, held)
    current = trust.Current(watched.policy if watched is not None else UnsafePlaintext())
    policy = current.policy
    own = settings.coordinator
    owner = Owner(own.id, own.advertise[0], own.port)
    describe(policy, side="server")
    metrics.DAG_LABELS.is_wanted = settings.core.metrics_per_dag
    async with contextlib.AsyncExitStack() as stack:
        paths = settings.paths
        paths.data_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        trail = await stack.enter_async_context(audit.process_trail(loaded, "coordinator", policy))
        disk = Disk(paths.data_dir)
        await stack.enter_async_context(disk.watched())
        register = Register(ledgered.watching(loaded.home.pki_dir, trail, audit.links(trail, server_events)))
        folder = stack.enter_context(private.folder())
        store = await stack.enter_async_context(
            sql.open_store(
                f"sqlite:///{paths.data_dir / 'coordinator.db'}",
                write_failed=metrics.STORE_ERRORS.labels("runs", "write").inc,
            )
        )
        running = await stack.enter_async_context(
            service.running(
                store=store,
                blobs=Blobs(
                    logs=paths.log_dir, artifacts=paths.artifact_dir, bundles=paths.data_dir / "workspace-bundles"
                ),
                dags=DefinitionFolder(paths.dags_dir),
                load=_load,
                owner=owner,
                options=service.Options(
                    task_wait=own.task_wait,
                    secrets_dir=paths.secrets_dir,
                    log_charset=loaded.settings.ui.log_encoding_charset,
                ),
                worker_gone=metrics.forget_worker,
                trail=trail,
                policy=lambda: exceptions.policy_of(held),
                would_deny=audit.tenant_would_be_denials(trail),
                peers=register.peers,
            )
        )

        def refused(denial: object) -> None:
            denied(denial)
            if not isinstance(denial, Denial) or denial.reason != DenyReason.LABEL_NOT_GRANTED:
                return
            if denial.claimed_worker and denial.peer is not None and denial.peer.is_proven:
                running.desk.board.claim_refused(WorkerId(denial.claimed_worker), denial.labels)

        gate = Gate(
            peer_of=register.peer_of,
            recorder=metrics.RPC_SERVER,
            denied=audit.denials(trail, refused),
            would_deny=audit.would_be_denials(trail, would_deny),
            policy=exceptions.policy_of(held),
            standing=current.standing,
        )
        everything = _Everything(running)
        backends = [f"{folder}/grpc{number}" for number in range(server.ACCEPTING)]
        # Left in reverse: gRPC ends its open calls first, then the edge cuts its links.
        edge = await stack.enter_async_context(
            listener.listen(
                bind=[(own.host, own.port)],
                policy=policy,
                backends=backends,
                directory=folder,
                register=register,
                forwarders=own.proxy_protocol_from,
            )
        )
        wire = await stack.enter_async_context(
            server.serve(
                socket_paths=backends,
                desk=everything,
                gate=gate,
                keepalive=own.keepalive,
                advertise=[Owner(own.id, name, own.port).address for name in own.advertise],
            )
        )
        edge.answer = enrolment.Answering(desk, trail) if desk is not None else None
        await stack.enter_async_context(own_renewal.kept_renewed(loaded, desk, trail))
        weakenings = Weakenings(held, watched, current, edge=edge, gate=gate, wire=wire)
        await stack.enter_async_context(exceptions.watching(held, weakenings.take_back, trail))
        await stack.enter_async_context(
            trust.coordinator_kept_current(
                loaded, watched, current, edge=edge, gate=gate, releasing=running.releasing, trail=trail
            )
        )
        metrics.show_connections(register.counts, register.peers)
        await stack.enter_async_context(copied.watched(register.peers, by_design=own.shared_certificates, trail=trail))
        await stack.enter_async_context(compliance.shown(compliance.controls(loaded, trail)))
        await stack.enter_async_context(
            serve_health(
                loaded,
                "coordinator",
                facts=lambda: {
                    "status": "healthy",
                    "peer": mode_of(policy),
                    "connections": len(register),
                    "exceptions": held.facts(),
                },
                objections=lambda: [
                    *([Unavailable("the coordinator is stopping")] if stop.is_set() else []),
                    *weakenings.objections(),
                    *disk.objections(),
                    *([Unavailable(why)] if (why := trail.problem()) else []),
                ],
                policy=lambda: edge.policy,
                registries=(metrics.COMMON, metrics.COORDINATOR),
                held=held,
                on_event=audit.links(trail, server_events),
                denied=audit.denials(trail, denied),
            )
        )
        registered = await stack.enter_async_context(contextlib.AsyncExitStack())
        await registered.enter_async_context(
            discovering.coordinator_registered(
                loaded, started=Instance(id=own.id, host=owner.host, port=owner.port, pid=os.getpid())
            )
        )
        settle()
        log.info(
            "coordinator.ready",
            version=__version__,
            listen=", ".join(f"{host}:{port}" for host, port in edge.addresses),
            advertise=owner.address,
            peer=mode_of(policy),
        )
        try:
            yield Serving(coordinator=everything, trail=trail, register=register)
        finally:
            log.info("coordinator.stopping")
            await registered.aclose()
            wire.drain()
            edge.stop_accepting()


def _load(text: str, *, name: str | None = None, base_config: str = "") -> Definition:
    # With the first definition: a coordinator that has none to look at needs no YAML.
    from secure_dagu.dag.load import load_definition

    return load_definition(text, name=name, base_config=base_config)


class _Everything:
    """All verbs of a coordinator in one object, as the wire wants them (`dispatch.api.Coordinator`)."""

    def __init__(self, of: Service) -> None:
        desk, reports, bundles, state = of.desk, of.reports, of.bundles, of.state
        self.dispatch, self.poll, self.withdraw, self.acknowledge = (
            desk.dispatch, desk.poll, desk.withdraw, desk.acknowledge,
        )  # fmt: skip
        self.heartbeat, self.run_heartbeat, self.cancellations = (
            desk.heartbeat, desk.run_heartbeat, desk.cancellations,
        )  # fmt: skip
        self.cancel, self.workers = desk.cancel, desk.workers
        self.report_status, self.stream_logs, self.stream_artifacts = (
            reports.report_status, reports.stream_logs, reports.stream_artifacts,
        )  # fmt: skip
        self.run_status, self.runs, self.follow = reports.run_status, reports.runs, reports.follow
        self.find_runs, self.count_runs = reports.find_runs, reports.count_runs
        self.log_page = reports.log_page
        self.read_log, self.artifacts, self.read_artifact = reports.read_log, reports.artifacts, reports.read_artifact
        self.delete_run = of.deleting.delete_run
        self.put, self.has, self.get = bundles.put, bundles.has, bundles.get
        self.get_state, self.put_state, self.delete_state, self.list_state = (
            state.get_state, state.put_state, state.delete_state, state.list_state,
        )  # fmt: skip
        self.announce, self.fleet = of.machines.announce, of.machines.fleet
        self.drain, self.links = of.machines.drain, of.machines.links
        self.dag_text, self.resolve_secret = state.dag_text, state.resolve_secret
