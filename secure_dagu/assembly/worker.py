"""A worker's process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from secure_dagu.assembly import discovering, exceptions, reload, renewal, worker_trust
from secure_dagu.assembly.edge import client_events, denied, describe, mode_of, proxy_of, server_events
from secure_dagu.assembly.process import on_signals, settle
from secure_dagu.config.load import Loaded, host_environment
from secure_dagu.config.peers import Purpose
from secure_dagu.dispatch.model import Caller, Role, WorkerId
from secure_dagu.errors import ConfigError
from secure_dagu.link import dialer, private
from secure_dagu.link.context import ClientPolicy, UnsafePlaintext
from secure_dagu.link.material import Material
from secure_dagu.security.exceptions import Kind
from secure_dagu.security.grants import NOTHING, is_reserved
from secure_dagu.telemetry import metrics
from secure_dagu.wire import process

if TYPE_CHECKING:
    from secure_dagu.runner.api import ChildRuns, RunObserver, RunRequest


log = structlog.get_logger()


async def run_worker(loaded: Loaded) -> None:
    """Work until SIGTERM or SIGINT, then drain; a second signal stops at once.

    Raises:
        ConfigError, Refused, Unauthenticated: no coordinator can be worked for without somebody's help.
    """
    process.prepare()
    from secure_dagu import worker
    from secure_dagu.runner import workspace
    from secure_dagu.wire.routes import WireRoutes

    settings = loaded.settings
    own = settings.worker
    held = exceptions.admitted(loaded, Purpose.WORKER)
    # First: who has not said whom to work for needs no certificate yet.
    coordinators = await discovering.workers_coordinators(loaded, is_proven=not settings.peer.insecure)
    renewal.finish_interrupted(loaded, own.id.partition("@")[0])
    watched = reload.worker_files(loaded, held, check=lambda found: _check_worker_name(found, own.id))
    policy = watched.policy if watched is not None else UnsafePlaintext()
    _check_labels(policy, own.labels)
    describe(policy, side="client")
    loaded = replace(loaded, settings=settings.replaced(worker=own.replaced(coordinators=tuple(coordinators))))
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(
            dialer.dialers(policy=policy, directory=folder, on_event=client_events, proxy=proxy_of(loaded))
        )
        routes = WireRoutes(
            [(item.host, item.port) for item in coordinators],
            connect=dialers.connect,
            recorder=metrics.RPC_CLIENT,
            is_proven=isinstance(policy, ClientPolicy),
            retries=discovering.retries(loaded),
        )
        stack.push_async_callback(routes.close)
        await stack.enter_async_context(worker_trust.kept_current(loaded, watched, dialers=dialers, routes=routes))
        await stack.enter_async_context(
            renewal.worker_kept_renewed(loaded, lambda: watched.policy if watched is not None else policy)
        )
        working = worker.Worker(
            caller=Caller(
                role=Role.WORKER, name=own.id, proven=isinstance(policy, ClientPolicy), worker=WorkerId(own.id)
            ),
            routes=routes,
            names=[str(item) for item in coordinators],
            labels=own.labels,
            max_active_runs=own.max_active_runs,
            execute=_execute,
            workspaces=workspace.Workspaces(settings.paths.dag_run_work_dir, own.id),
            host_env=host_environment(loaded),
            default_shell=settings.core.default_shell,
            public_url=settings.core.public_url,
            timings=worker.Timings(
                drain_timeout_s=own.drain_timeout.total_seconds(), orphan_timeout_s=own.orphan_timeout.total_seconds()
            ),
        )
        stack.enter_context(on_signals(working.drain))

        def take_back(kind: Kind) -> None:
            if kind is Kind.PLAINTEXT:
                working.drain()  # what runs may finish; then this process ends
            elif kind is Kind.TLS_1_2 and watched is not None:
                dialers.use(watched.remake())
                dialers.cut(lambda peer: peer.tls_version == "TLSv1.2")

        await stack.enter_async_context(exceptions.watching(held, take_back))
        if own.health_port:  # else the process needs no HTTP at all
            from secure_dagu.assembly.health import serve_health

            await stack.enter_async_context(
                serve_health(
                    loaded,
                    "worker",
                    facts=lambda: {**working.health(), "peer": mode_of(policy), "exceptions": held.facts()},
                    objections=working.objections,
                    policy=lambda: watched.policy if watched is not None else policy,
                    registries=(metrics.COMMON, metrics.WORKER),
                    held=held,
                    on_event=server_events,
                    denied=denied,
                )
            )
        settle()
        await working.run()


async def _execute(request: RunRequest, observer: RunObserver, children: ChildRuns, *, stop: asyncio.Event) -> None:
    # With the first task: an idle worker needs neither the engine nor the language, and the rest starts sooner.
    from secure_dagu.runner import runner

    await runner.execute(request, observer, children, stop=stop)


def _check_worker_name(found: Material, worker_id: str) -> None:
    """Say at start what the coordinator would say at the first call: a worker acts only as itself."""
    identity = found.identity
    if identity.role is Role.WORKER and worker_id.partition("@")[0] != identity.name:
        raise ConfigError(
            f"worker.id {worker_id!r} is not what its certificate says",
            why=f"{found.own.file} proves {identity}, and a worker acts only as itself",
            fix=f"say --worker.id={identity.name}, or issue a certificate with `secure-dagu pki issue worker NAME`",
        )


def _check_labels(policy: ClientPolicy | UnsafePlaintext, labels: Mapping[str, str]) -> None:
    """Say at start what the coordinator would say at the first poll about labels that the certificate does not grant.

    A warning, for the coordinator may be told to allow ordinary labels; a security label is never allowed.
    """
    missing = (policy.grants if isinstance(policy, ClientPolicy) else NOTHING).missing(labels)
    reserved = [label for label in missing if is_reserved(label)]
    if isinstance(policy, UnsafePlaintext):
        if reserved:
            raise ConfigError(
                f"the worker may not claim {', '.join(reserved)}",
                why="only a certificate grants security labels, and peer.insecure uses none",
                fix="drop them from worker.labels, or turn peer.insecure off",
            )
        return
    if not missing:
        return
    shown = ",".join(missing)
    why = f"{policy.own.file} grants {policy.grants or 'no labels'}"
    fix = (
        f"on the host of the CA run `secure-dagu pki issue worker {policy.identity.name} --force --labels {shown}`, or "
        "drop them from worker.labels"
    )
    if reserved:
        raise ConfigError(f"the worker may not claim {', '.join(reserved)}", why=why, fix=fix)
    log.warning("worker.labels_not_granted", labels=shown, why=f"{why}, and the coordinator refuses others", fix=fix)
