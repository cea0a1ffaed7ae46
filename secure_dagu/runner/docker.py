"""Speak the Docker Engine API over its socket: the few calls that containers of a run need.

The API is HTTP, and we already have an HTTP client that can be cancelled: with it a stop ends a call at once, which
threads of the docker SDK could not. Podman's socket speaks the same API.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from secure_dagu.errors import ConfigError, NotFound, SecureDaguError, Unavailable

if TYPE_CHECKING:
    import httpx

CALL_S = 60.0
"""How long the daemon may take for one answer; streams have no limit but the step's."""
MAX_ANSWER = 16 * 2**20
MAX_ERROR = 300
_DOCKER = "unix:///var/run/docker.sock"
_FRAME_HEAD = 8

Output = tuple[bool, bytes]
"""A piece of output: whether it is stderr's, and the bytes."""


def daemon_of(env: Mapping[str, str]) -> str:
    """Return the address of the daemon that this host's environment chooses (workflow language, section 4.7)."""
    if env.get("DAGU_CONTAINER_RUNTIME", "docker") == "podman":
        below = "/run" if os.geteuid() == 0 else env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        return env.get("DAGU_PODMAN_HOST") or f"unix://{below}/podman/podman.sock"
    return env.get("DOCKER_HOST") or _DOCKER


class Daemon:
    """One connection pool to a daemon. Every call raises `Unavailable` when it does not answer or refuses."""

    def __init__(self, client: httpx.AsyncClient, address: str) -> None:
        self._client = client
        self._address = address

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = CALL_S,
    ) -> Any:
        """Make a call and return its JSON answer, None for an empty one.

        Raises:
            NotFound: there is no such container, image or exec.
        """
        data = bytearray()
        async with self._open(method, path, body=body, query=query, timeout_s=timeout_s) as answer:
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > MAX_ANSWER:
                    raise Unavailable("the container daemon's answer is too long")
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    async def pull(self, image: str, *, platform: str, auth: Mapping[str, str] | None) -> None:
        """Pull an image.

        Raises:
            Unavailable: the registry refused; says why in the daemon's words.
        """
        query = {"fromImage": image, **({"platform": platform} if platform else {})}
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            query["tag"] = "latest"
        headers = {}
        if auth is not None:
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()
        async with self._open("POST", "/images/create", query=query, headers=headers, timeout_s=None) as answer:
            async for line in answer.aiter_lines():
                if '"error"' in line[:MAX_ANSWER]:
                    with contextlib.suppress(ValueError, RecursionError, AttributeError):
                        if told := json.loads(line).get("error"):
                            raise Unavailable(f"the image {image} cannot be pulled", why=str(told)[:MAX_ERROR])

    async def output(
        self, method: str, path: str, *, body: Any = None, is_raw: bool = False
    ) -> AsyncGenerator[Output, None]:
        """Yield what comes out of a container or exec, until it ends.

        `is_raw`: it has a terminal, so that there is one stream without frames.
        """
        async with self._open(method, path, body=body, timeout_s=None) as answer:
            if is_raw:
                async for piece in answer.aiter_raw():
                    yield False, piece
                return
            head, left, is_error = b"", 0, False
            async for piece in answer.aiter_raw():
                while piece:
                    if left == 0:  # eight bytes before each frame: which stream, three zeros, its length
                        take = _FRAME_HEAD - len(head)
                        head, piece = head + piece[:take], piece[take:]
                        if len(head) == _FRAME_HEAD:
                            left, is_error, head = int.from_bytes(head[4:], "big"), head[0] == 2, b""
                        continue
                    yield is_error, piece[:left]
                    left, piece = left - len(piece[:left]), piece[left:]

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None,
    ) -> AsyncIterator[httpx.Response]:
        import httpx

        timeout = httpx.Timeout(CALL_S, read=timeout_s)
        try:
            async with self._client.stream(
                method, path, json=body, params=query, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code >= 400:
                    await _refused(answer)
                yield answer
        except httpx.HTTPError as error:
            why = f"{self._address}: {type(error).__name__}"
            raise Unavailable("the container daemon does not answer", why=why) from None


async def _refused(answer: httpx.Response) -> None:
    data = b""
    async for piece in answer.aiter_bytes():
        data += piece
        if len(data) > 64 * 1024:
            break
    try:
        told = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        told = f"it answered {answer.status_code}"
    kind: type[SecureDaguError] = NotFound if answer.status_code == 404 else Unavailable
    raise kind("the container daemon refused", why=told[:MAX_ERROR])


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Daemon]:
    """Open a way to a daemon.

    Raises:
        ConfigError: the address is of a kind that is not supported.
    """
    import httpx

    scheme, _, rest = address.partition("://")
    if scheme == "unix" and rest:
        transport = httpx.AsyncHTTPTransport(uds=rest)
        base = "http://docker"
    elif scheme == "tcp" and rest.partition(":")[0] in ("127.0.0.1", "localhost"):
        transport, base = httpx.AsyncHTTPTransport(), f"http://{rest}"
    else:
        raise ConfigError(
            f"the container daemon {address} cannot be used",
            why="only a unix socket, or tcp on this host, is: over a network it would be anybody's",
            fix="use unix:///…, for instance of an SSH tunnel",
        )
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        yield Daemon(client, address)
