"""A small container daemon: the Docker Engine API's calls that we make, over a real unix socket.

Its containers are processes of this host with nothing but the environment they were given: what is run really runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, Any]


class Program:
    """A process, what it has said so far, and its end."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.said: list[tuple[int, bytes]] = []
        self.code: int | None = None
        self.changed = asyncio.Condition()
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, argv: list[str], folder: Path, group: asyncio.TaskGroup) -> None:
        env = {"PATH": "/usr/bin:/bin", **dict(entry.split("=", 1) for entry in self.body.get("Env") or ())}
        self._child = await asyncio.create_subprocess_exec(
            *argv, env=env, cwd=self.body.get("WorkingDir") or folder, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        group.create_task(self._watch(self._child))

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(1, child.stdout))
            group.create_task(self._read(2, child.stderr))
        code = await child.wait()
        async with self.changed:
            self.code = code if code >= 0 else 128 - code
            self.changed.notify_all()

    async def _read(self, stream: int, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            async with self.changed:
                self.said.append((stream, data))
                self.changed.notify_all()

    @property
    def is_running(self) -> bool:
        return self._child is not None and self.code is None

    def kill(self, number: signal.Signals) -> None:
        if self._child is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    async def ended(self) -> int:
        async with self.changed:
            await self.changed.wait_for(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    async def frames(self) -> AsyncIterator[bytes]:
        at = 0
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: len(self.said) > at or self.code is not None)  # noqa: B023
                pieces, is_over = self.said[at:], self.code is not None
            for stream, data in pieces:
                yield bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data
            at += len(pieces)
            if is_over and not pieces:
                return


class Dockerd:
    """What there is, and what was asked."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self.socket, self._folder = socket, folder
        self.images = {"tool:1"}
        self.remote = {"far:1": "", "private:1": "needs auth"}
        """Images of the registry; a text: it needs a login."""
        self.auths: list[str | None] = []
        self.pulls: list[str] = []
        self.containers: dict[str, Program] = {}
        self.names: dict[str, str] = {}
        self.created: list[dict[str, Any]] = []
        self.removed: list[str] = []
        self.execs: dict[str, Program] = {}
        self.asked: list[str] = []
        self._group: asyncio.TaskGroup
        self._count = 0

    async def add(self, name: str, body: dict[str, Any]) -> None:
        """Have a container that somebody else started."""
        program = Program(body)
        self.containers[name], self.names[name] = program, name
        await program.start(["sleep", "60"], self._folder, self._group)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Dockerd]:
        async with asyncio.TaskGroup() as self._group:
            server = await asyncio.start_unix_server(self._serve, self.socket)
            try:
                yield self
            finally:
                server.close()
                for program in (*self.containers.values(), *self.execs.values()):
                    program.kill(signal.SIGKILL)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (entry.partition(": ") for entry in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = line.split(" ")
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.asked.append(f"{method} {url.path}")
        streamed = await self._stream(method, parts, writer)
        if streamed:
            return False
        status, answer = await self._answer(method, parts, query, json.loads(body) if body else {}, headers)
        data = b"" if answer is None else answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True

    async def _stream(self, method: str, parts: list[str], writer: asyncio.StreamWriter) -> bool:
        match parts:
            case ["exec", exec_id, "start"] if not self.execs[exec_id].body.get("Detached"):
                program = self.execs[exec_id]
                await program.start(program.body["Cmd"], self._folder, self._group)
            case ["containers", name, "logs"]:
                program = self.containers[self.names[name]]
            case _:
                return False
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n")
        async for frame in program.frames():
            for at in range(0, len(frame), 7):  # in small pieces, so that frames are cut anywhere
                writer.write(frame[at : at + 7])
            await writer.drain()
        return True

    async def _answer(
        self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any], headers: dict[str, str]
    ) -> Answer:
        match method, parts:
            case "GET", ["images", *words, "json"]:
                return (200, {}) if "/".join(words) in self.images else (404, {"message": "No such image"})
            case "POST", ["images", "create"]:
                return 200, self._pull(query, headers.get("x-registry-auth"))
            case "POST", ["containers", "create"]:
                return self._create(query, body)
            case "POST", ["exec", exec_id, "start"]:
                program = self.execs[exec_id]
                await program.start(program.body["Cmd"], self._folder, self._group)
                return 200, None
            case "GET", ["exec", exec_id, "json"]:
                program = self.execs[exec_id]
                return 200, {"Running": program.is_running, "ExitCode": program.code}
            case method, ["containers", name, *rest]:
                if name not in self.names:
                    return 404, {"message": f"No such container: {name}"}
                return await self._of_container(method, self.names[name], rest, query, body)
        return 404, {"message": "page not found"}

    def _pull(self, query: dict[str, str], auth: str | None) -> bytes:
        image = query["fromImage"] + (f":{query['tag']}" if "tag" in query else "")
        self.pulls.append(image)
        self.auths.append(auth)
        if image in self.remote and (auth or not self.remote[image]):
            self.images.add(image)
            return b'{"status":"Pulling"}\n{"status":"Done"}\n'
        return b'{"status":"Pulling"}\n{"error":"pull access denied"}\n'

    def _create(self, query: dict[str, str], body: dict[str, Any]) -> Answer:
        if body["Image"] not in self.images:
            return 404, {"message": f"No such image: {body['Image']}"}
        name = query.get("name", "")
        if name in self.names:
            return 409, {"message": f"Conflict. The container name {name} is already in use"}
        self._count += 1
        container_id = f"c{self._count}"
        self.containers[container_id] = Program(body)
        self.names[container_id] = container_id
        if name:
            self.names[name] = container_id
        self.created.append({**body, "name": name, "platform": query.get("platform", "")})
        return 201, {"Id": container_id}

    async def _of_container(
        self, method: str, container_id: str, rest: list[str], query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        program = self.containers[container_id]
        match method, rest:
            case "POST", ["start"]:
                fields = {name.lower(): value for name, value in program.body.items()}  # as the real one reads them
                argv = [*(fields.get("entrypoint") or ()), *(fields.get("cmd") or ())]
                await program.start(argv, self._folder, self._group)
                return 204, None
            case "GET", ["json"]:
                return 200, {"Id": container_id, "State": await self._state(program)}
            case "POST", ["wait"]:
                return 200, {"StatusCode": await program.ended()}
            case "POST", ["stop"]:
                program.kill(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(float(query["t"])):
                        await program.ended()
                program.kill(signal.SIGKILL)
                return 204, None
            case "POST", ["exec"]:
                self._count += 1
                exec_id = f"e{self._count}"
                is_attached = body.get("AttachStdout", False)
                self.execs[exec_id] = Program({**body, "Detached": not is_attached, "container": container_id})
                return 201, {"Id": exec_id}
            case "DELETE", []:
                program.kill(signal.SIGKILL)
                for other in self.execs.values():
                    if other.body["container"] == container_id:
                        other.kill(signal.SIGKILL)
                self.removed.append(container_id)
                self.names = {name: known for name, known in self.names.items() if known != container_id}
                return 204, None
        return 404, {"message": "page not found"}

    async def _state(self, program: Program) -> dict[str, Any]:
        status = "running" if program.is_running else "exited"
        state: dict[str, Any] = {"Running": program.is_running, "Status": status, "ExitCode": program.code or 0}
        if check := program.body.get("Healthcheck"):
            probe = Program(program.body)
            await probe.start(["/bin/sh", "-c", check["Test"][1]], self._folder, self._group)
            word = check.get("unhealthy", "starting")
            state["Health"] = {"Status": "healthy" if await probe.ended() == 0 else word}
        return state
