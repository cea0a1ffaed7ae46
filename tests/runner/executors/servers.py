"""Private copies of servers, on this host only: one of a kind for each process that runs tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests import needs
from tests.ports import free_port

PASSWORD = "pg-secret-7731"


@dataclass(frozen=True)
class Postgres:
    """A server that trusts its socket and wants the password on its port."""

    folder: Path
    port: int

    def dsn(self, schema: str = "public") -> str:
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres options=-csearch_path={schema}"


def until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a server that has no other way to tell that it listens."""
    end = time.monotonic() + 60
    while not is_ready():
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server does not answer"
        time.sleep(0.02)


def listens(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run PostgreSQL, which refuses to be root."""
    # Debian keeps it out of the PATH.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    server = str(found[-1]) if found else needs.program("postgres", package="postgresql")
    initdb = str(Path(server).resolve().with_name("initdb"))
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is at most 107 bytes
    if user is not None:
        shutil.chown(folder, user)
    (secret := folder / "password").write_text(PASSWORD)
    secret.chmod(0o644)
    port = free_port()
    data = folder / "data"
    try:
        subprocess.run(
            [initdb, "-D", data, "-U", "postgres", f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--no-locale",
             "--auth-local=trust", "--auth-host=scram-sha-256"],
            user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        process = subprocess.Popen(
            [server, "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port), "-c", "fsync=off", "-c",
             "shared_buffers=16MB", "-c", "timezone=UTC"],
            user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: _answers(folder, port), process)
            yield Postgres(folder, port)
        finally:
            process.send_signal(3)  # SIGQUIT: at once, nothing here is worth a clean shutdown
            process.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(folder: Path, port: int) -> bool:
    try:
        psycopg.connect(f"host={folder} port={port} user=postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@dataclass(frozen=True)
class Redis:
    """A server that wants `password`."""

    socket: str
    port: int
    password: str = "redis-secret-42"


@contextmanager
def redis(*arguments: str, sentinel: bool = False, tls: bool = False) -> Iterator[Redis]:
    """Run Redis; `arguments` are its configuration, as on its command line."""
    server = needs.program("redis-server", package="redis-server")
    folder = Path(tempfile.mkdtemp(prefix="redis-", dir="/tmp"))
    (folder / "redis.conf").touch()
    made = Redis(str(folder / "s"), free_port())
    ports = ["--port", "0", "--tls-port", str(made.port)] if tls else ["--port", str(made.port)]
    auth = [] if sentinel else ["--requirepass", made.password, "--masterauth", made.password, "--save", ""]
    process = subprocess.Popen(
        [server, str(folder / "redis.conf"), *(["--sentinel"] if sentinel else []), "--bind", "127.0.0.1",
         "--unixsocket", made.socket, "--dir", str(folder), *ports, *auth, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: listens(("127.0.0.1", made.port)), process)
        yield made
    finally:
        process.kill()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
