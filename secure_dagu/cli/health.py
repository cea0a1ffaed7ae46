"""`secure-dagu health`: ask a process of this host how it is, for probes where there is no other HTTP client."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING

from secure_dagu.cli.output import say, visible
from secure_dagu.dispatch.address import host_port
from secure_dagu.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from secure_dagu.config.load import Loaded

SUMMARY = "Ask a process of this host whether it is healthy, or ready; exit 0 if it says so, else 5."
EXAMPLE = "secure-dagu health --ready coordinator"
PROCESSES = ("coordinator", "worker", "scheduler", "server")
LIMIT_S = 5.0
MAX_ANSWER = 1 << 16
_URL = re.compile(r"http://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})(?P<path>/[!-~]*)")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "process", metavar="PROCESS", nargs="?", choices=PROCESSES, default="coordinator",
        help=f"{', '.join(PROCESSES)} (default coordinator); its address comes from the settings",
    )  # fmt: skip
    parser.add_argument("--ready", action="store_true", help="whether it can work now, not only whether it lives")
    parser.add_argument("--url", metavar="URL", help="ask there instead, such as http://127.0.0.1:8091/ready")


async def run(args: argparse.Namespace) -> int:
    """Ask, print the answer, and return 0 for status 200."""
    from secure_dagu.config.load import load

    url = args.url or _url(load(args), args.process, is_ready=args.ready)
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidRequest(f"{url!r} cannot be asked", fix="say http://HOST:PORT/PATH; probes stay on their host")
    status, body = await _get(found["host"].strip("[]"), int(found["port"]), found["path"])
    if status == 200:
        print(visible(body))
        return 0
    say(visible(body))
    return Unavailable.exit_code


def _url(loaded: Loaded, process: str, *, is_ready: bool) -> str:
    settings = loaded.settings
    path = "/ready" if is_ready else "/health"
    if process == "server":
        host, port = settings.core.host, settings.core.port
        path = f"{settings.core.base_path}{settings.core.api_base_path}{path}"
    elif process == "scheduler":
        host, port = settings.scheduler.host, settings.scheduler.port
    else:
        own = settings.worker if process == "worker" else settings.coordinator
        host, port = own.health_host, own.health_port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """Return status and body.

    Raises:
        Unavailable: there is no such answer.
    """
    import asyncio

    import h11

    asked = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
    headers = [("Host", host_port(host, port)), ("Connection", "close")]
    status, body = 0, b""
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(asked.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
                asked.send(h11.EndOfMessage())
                while not isinstance(event := asked.next_event(), h11.EndOfMessage) and len(body) < MAX_ANSWER:
                    if event is h11.NEED_DATA:
                        asked.receive_data(await reader.read(MAX_ANSWER))
                    elif isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        body += event.data
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or f"no answer within {LIMIT_S:.0f} s"
        raise Unavailable(
            f"nothing answers on {host}:{port}", why=why, fix="start the process, or correct the address"
        ) from error
    except h11.RemoteProtocolError as error:
        raise Unavailable(
            f"what answers on {host}:{port} is not HTTP", why="it may speak TLS",
            fix="health ports are 8090, 8091 and 8092, and speak plain HTTP on loopback",
        ) from error  # fmt: skip
    text = body.decode(errors="replace").strip()
    try:
        return status, json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return status, text
