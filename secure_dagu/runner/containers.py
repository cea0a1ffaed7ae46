"""Containers of a run: made, waited for, worked in, taken away (workflow language, section 4.7).

A container that commands run in does nothing by itself; each command is an `exec`. What is stopped is found by a token
in its environment, in the container's own /proc: the API has no way to signal an exec.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from secure_dagu.dag.scope import Layer, Scope
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve, resolve_tree
from secure_dagu.errors import Conflict, NotFound, SecureDaguError, Unavailable
from secure_dagu.runner import container_specs, docker
from secure_dagu.runner.container_specs import Container
from secure_dagu.runner.context import StepContext
from secure_dagu.runner.docker import Daemon
from secure_dagu.runner.process import Sink

TOKEN = "_DAGU_INTERNAL_EXEC"  # noqa: S105 - the name of a variable
READY_S = 120.0
"""How long a container may take until it is ready (section 4.7)."""
POLL_S = 0.1
CLEAN_UP_S = 15.0
"""How long the daemon may take to end and remove a container, beyond the time that its processes are given."""
LOG_LINE = 8 * 1024
_KILL = (
    "for f in /proc/[0-9]*/environ; do "
    'grep -q {token} "$f" 2>/dev/null && p=${{f#/proc/}} && kill -{signal} "${{p%/*}}"; done'
)
_ELSEWHERE = frozenset({
    "PWD", "DAGU_OUTPUT_FILE", "DAG_RUN_STEP_STDOUT_FILE", "DAG_RUN_STEP_STDERR_FILE", "DAG_RUN_LOG_FILE",
    "DAG_RUN_WORK_DIR", "DAG_RUN_ARTIFACTS_DIR", "DAGU_EXECUTABLE", "DAGU_HOME", "DAGU_CONFIG",
})  # fmt: skip
"""Variables that name paths of this host, which a container does not have."""


class Room:
    """A running container, to run commands in."""

    def __init__(self, daemon: Daemon, container_id: str, spec: Container) -> None:
        self._daemon, self._id, self.spec = daemon, container_id, spec

    async def run(self, argv: Sequence[str], context: StepContext, *, env: Mapping[str, str], folder: str = "") -> int:
        """Run a program; return its exit code. When this is cancelled it is asked to end, and then made to."""
        token = secrets.token_hex(16)
        body = {
            "Cmd": list(argv),
            **self.spec.exec_body,
            **({"WorkingDir": folder} if folder else {}),
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": False,
        }
        own = body.get("Env") or ()
        body["Env"] = [*(f"{name}={text}" for name, text in env.items()), *own, f"{TOKEN}={token}"]
        made = await self._daemon.call("POST", f"/containers/{quote(self._id)}/exec", body=body)
        path = f"/exec/{quote(made['Id'])}"
        try:
            out = self._daemon.output("POST", f"{path}/start", body={"Detach": False, "Tty": False})
            await _copy(out, context.stdout, context.stderr)
            return await self._exit_code(path)
        except asyncio.CancelledError:
            with contextlib.suppress(SecureDaguError, TimeoutError):
                async with asyncio.timeout(context.stopping.grace_s + CLEAN_UP_S):
                    await self._end(path, token, context)
            raise

    async def _exit_code(self, path: str) -> int:
        while True:
            state = await self._daemon.call("GET", f"{path}/json")
            if not state.get("Running"):
                return int(state.get("ExitCode") or 0)
            await asyncio.sleep(POLL_S)

    async def _end(self, path: str, token: str, context: StepContext) -> None:
        await self._signal(token, context.stopping.ask.name.removeprefix("SIG"))
        try:
            async with asyncio.timeout(context.stopping.grace_s):
                await self._exit_code(path)
        except TimeoutError:
            await self._signal(token, "KILL")
            await self._exit_code(path)

    async def _signal(self, token: str, signal: str) -> None:
        body = {"Cmd": ["/bin/sh", "-c", _KILL.format(token=token, signal=signal)], "User": "0"}
        made = await self._daemon.call("POST", f"/containers/{quote(self._id)}/exec", body=body)
        await self._daemon.call("POST", f"/exec/{quote(made['Id'])}/start", body={"Detach": True, "Tty": False})


class RunContainer:
    """The one container of a run: made when the first command needs it, shared by all, gone with the run."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._room: Room | None = None

    async def room(self, context: StepContext) -> Room:
        """Return the container, made if this is the first time."""
        async with self._lock:
            if self._room is None:
                scope = _root_scope(context.scope)
                self._room = await self._stack.enter_async_context(opened(context, context.dag.container, scope))
            return self._room

    async def close(self) -> None:
        """Remove it, if it was made.

        Raises:
            Unavailable: the daemon did not.
        """
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def opened(context: StepContext, container: Any, scope: Scope) -> AsyncIterator[Room]:
    """Make a container ready for commands, or enter a running one; remove what was made."""
    own = container.get("env") if isinstance(container, Mapping) else None
    scope = evaluate_env(container_specs.env_entries(own), scope, layer=Layer.CONTAINER)
    spec = container_specs.read(
        container,
        scope,
        root=context.root,
        run_id=context.request.task.run.run_id,
        resources=context.dag.resources,
        is_lasting=True,
    )
    async with docker.connected(docker.daemon_of(context.request.host_env)) as daemon:
        if spec.running:
            yield Room(daemon, await _find(daemon, spec.running), spec)
            return
        async with made(daemon, spec, context) as container_id:
            await _start(daemon, container_id, spec)
            yield Room(daemon, container_id, spec)


async def run_image(daemon: Daemon, spec: Container, context: StepContext) -> int:
    """Run a container to its end; return its exit code. When this is cancelled it is stopped."""
    async with made(daemon, spec, context) as container_id:
        path = f"/containers/{container_id}"
        try:
            await daemon.call("POST", f"{path}/start")
            is_raw = bool(spec.body.get("Tty") or spec.body.get("tty"))
            logs = daemon.output("GET", f"{path}/logs?follow=1&stdout=1&stderr=1", is_raw=is_raw)
            await _copy(logs, context.stdout, context.stderr)
            ended = await daemon.call("POST", f"{path}/wait", timeout_s=None)
        except asyncio.CancelledError:
            grace_s = context.stopping.grace_s
            with contextlib.suppress(SecureDaguError, TimeoutError):
                async with asyncio.timeout(grace_s + CLEAN_UP_S):
                    await daemon.call("POST", f"{path}/stop", query={"t": f"{grace_s:.0f}"}, timeout_s=None)
            raise
    return int(ended.get("StatusCode") or 0)


async def enter(daemon: Daemon, spec: Container, context: StepContext) -> int:
    """Run the program of an action in a container that is running already."""
    return await Room(daemon, await _find(daemon, spec.running), spec).run((), context, env={})


@contextlib.asynccontextmanager
async def made(daemon: Daemon, spec: Container, context: StepContext) -> AsyncIterator[str]:
    """Make a container, not yet started, and remove it afterwards unless it is to be kept; yields its id."""
    await _provide_image(daemon, spec, context)
    query = {key: value for key, value in (("name", spec.name), ("platform", spec.platform)) if value}
    answer = await daemon.call("POST", "/containers/create", body=dict(spec.body), query=query)
    container_id = quote(str(answer["Id"]))
    try:
        yield container_id
    finally:
        if not spec.is_kept:
            with contextlib.suppress(NotFound):
                async with asyncio.timeout(CLEAN_UP_S):
                    await daemon.call("DELETE", f"/containers/{container_id}", query={"force": "1", "v": "1"})


async def _find(daemon: Daemon, name: str) -> str:
    state = await daemon.call("GET", f"/containers/{quote(name, safe='')}/json")
    if not state["State"].get("Running"):
        raise Conflict(f"the container {name} is not running", fix="start it before the step")
    return str(state["Id"])


async def _provide_image(daemon: Daemon, spec: Container, context: StepContext) -> None:
    """Pull the image as far as the policy says so."""
    if spec.pull == "never":
        return
    is_there = True
    try:
        await daemon.call("GET", f"/images/{quote(spec.image, safe='/:@')}/json")
    except NotFound:
        is_there = False
    if spec.pull == "missing" and is_there:
        return
    auths = resolve_tree(context.dag.registry_auths, context.scope, FieldMode.FIELD)
    known = container_specs.credentials(spec.image, auths, context.env.get("DOCKER_AUTH_CONFIG", ""))
    try:
        await daemon.pull(spec.image, platform=spec.platform, auth=known)
    except SecureDaguError:
        if spec.pull != "fallback" or not is_there:
            raise


async def _start(daemon: Daemon, container_id: str, spec: Container) -> None:
    """Start a container and wait until it is what was asked for."""
    path = f"/containers/{container_id}"
    await daemon.call("POST", f"{path}/start")
    try:
        async with asyncio.timeout(READY_S):
            while not _is_ready((await daemon.call("GET", f"{path}/json"))["State"], spec):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            if spec.log_pattern:
                await _wait_for_line(daemon, path, spec.log_pattern)
    except TimeoutError:
        raise Unavailable(f"the container of {spec.image} was not ready within {READY_S:g} s") from None


def _is_ready(state: Mapping[str, Any], spec: Container) -> bool:
    health = (state.get("Health") or {}).get("Status", "none")
    if state.get("Status") in ("exited", "dead") or (spec.wait_for == "healthy" and health == "unhealthy"):
        why = "it is unhealthy" if health == "unhealthy" else f"it ended with exit code {state.get('ExitCode')}"
        raise Unavailable(f"the container of {spec.image} did not become ready", why=why)
    if spec.wait_for == "healthy" and health != "none":
        return bool(health == "healthy")
    return bool(state.get("Running"))


async def _wait_for_line(daemon: Daemon, path: str, pattern: str) -> None:
    found = re.compile(pattern.encode())
    lines = {False: b"", True: b""}
    logs = daemon.output("GET", f"{path}/logs?follow=1&stdout=1&stderr=1")
    async with contextlib.aclosing(logs):
        async for is_error, data in logs:
            *whole, rest = (lines[is_error] + data).split(b"\n")
            lines[is_error] = rest[-LOG_LINE:]
            if any(found.search(line[:LOG_LINE]) for line in (*whole, rest)):
                return
    raise Unavailable("the container ended before it logged what was waited for")


async def _copy(pieces: AsyncGenerator[docker.Output, None], stdout: Sink, stderr: Sink | None) -> None:
    async with contextlib.aclosing(pieces):
        async for is_error, data in pieces:
            (stderr if is_error and stderr is not None else stdout)(data)


def environment(scope: Scope) -> dict[str, str]:
    """Return what a command in a container sees of a scope: nothing of this host, no paths of this host."""
    host = scope.env.layer(Layer.HOST)
    found: dict[str, str] = {}
    for layer, values in scope.env.layers:
        for name, text in values.items():
            is_hosts = layer is Layer.HOST or (layer is Layer.INJECTED and host.get(name) == text)
            if not is_hosts and name not in _ELSEWHERE:
                found[name] = text
    return found


def _root_scope(scope: Scope) -> Scope:
    """Return a scope without what belongs to one step."""
    for layer in (Layer.STEP_MANAGED, Layer.OUTPUTS, Layer.STEP_ENV, Layer.CONTAINER, Layer.ATTEMPT):
        scope = scope.with_env(layer, {})
    return scope


def folder_of(context: StepContext, scope: Scope) -> str:
    """Return the directory in the container that the step asks for; empty: the container's own."""
    return resolve(context.step.working_dir, scope, FieldMode.FIELD)
