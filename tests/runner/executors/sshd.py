"""A real OpenSSH server on a loopback port, with keys of its own, run as whoever runs the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from tests.needs import program
from tests.ports import free_port


@dataclass(frozen=True)
class Sshd:
    """Where the server is and what lets one in."""

    port: int
    user: str
    key: Path
    known_hosts: Path
    pid: int

    def settings(self, **changes: str) -> str:
        """Return the connection keys of a step's `with`, as inline YAML without the braces."""
        values = {"host": "127.0.0.1", "port": str(self.port), "user": self.user, "key": str(self.key)}
        values |= {"known_host_file": str(self.known_hosts), **changes}
        return ", ".join(f"{name}: {value}" for name, value in values.items() if value)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    """Start a server; stop it afterwards."""
    sshd = program("sshd", package="openssh-server")
    if os.geteuid() == 0:  # the server wants this folder when it runs as root
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    host, user = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    host.write_private_key(folder / "host")
    user.write_private_key(folder / "user")
    for path in (folder / "host", folder / "user"):
        path.chmod(0o600)
    (folder / "authorized_keys").write_bytes(user.export_public_key())
    port = free_port()
    (folder / "known_hosts").write_bytes(f"[127.0.0.1]:{port} ".encode() + host.export_public_key())
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "AllowTcpForwarding yes\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if b"Server listening" in line:
                break
        yield Sshd(port, getpass.getuser(), folder / "user", folder / "known_hosts", server.pid)
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()
