"""`ssh.run`, and `run` in a DAG with a root `ssh`: commands on another host (workflow language, section 4.6).

The host is known or it is not talked to: `known_hosts` is checked unless the author says `strict_host_key: false`.
Each command gets a session of its own over one connection. A stop, or a timeout, drops that connection at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from secure_dagu.dag.values import FieldMode, resolve, resolve_tree
from secure_dagu.errors import DefinitionError, Refused, SecureDaguError, Unavailable
from secure_dagu.run.machine import Result
from secure_dagu.run.snapshot import shown_commands
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import command
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.places import remote_scope
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below
from secure_dagu.runner.process import Sink

if TYPE_CHECKING:
    import asyncssh

READ_BYTES = 64 * 1024
DEFAULT_KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519", "~/.ssh/id_dsa")
CONNECT_S = 30.0
KEEPALIVE_S = 15.0
"""How often a silent server is asked whether it is still there; three unanswered questions end the connection."""


class Login(Struct, frozen=True, kw_only=True):
    """A host and how to log in there."""

    host: str
    user: str
    port: int
    key: str
    """Path of a private key; empty: none is used."""
    password: str


class Target(Struct, frozen=True, kw_only=True):
    """Where an SSH or SFTP step goes."""

    login: Login
    bastion: Login | None
    known_hosts: str
    """Path of the file; empty: host keys are not checked."""
    timeout_s: float


async def execute(context: StepContext) -> Done:
    """Run the commands, in order, to the first failure."""
    settings = settings_of(context)
    target = read_target(settings, context.cwd)
    return await unless_stopped(context.stop, _run_all(context, target, _commands(context, settings)))


async def _run_all(context: StepContext, target: Target, commands: list[str]) -> Done:
    async with connected(target, context) as connection:
        for number, text in enumerate(commands, start=1):
            code = await _run(connection, text, context.stdout, context.stderr or context.stdout)
            done = command.ended(context, code)
            if done.result is not Result.SUCCEEDED:
                return command.failed(number, commands, done)
    return SUCCESS


async def _run(connection: asyncssh.SSHClientConnection, text: str, stdout: Sink, stderr: Sink) -> int:
    """Run one command in a session of its own; return its exit code, 128 and more for a signal."""
    process: asyncssh.SSHClientProcess[bytes]
    process = await connection.create_process(text, encoding=None, stdin=library("asyncssh", extra="ssh").DEVNULL)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(process.stdout, stdout))
            group.create_task(_copy(process.stderr, stderr))
        await process.wait_closed()
    except asyncio.CancelledError:
        process.terminate()  # asked for, not waited for: the connection goes at once
        raise
    if process.exit_status is not None and process.exit_status >= 0:
        return process.exit_status
    if process.exit_signal is not None:
        return 128 + _signal_number(process.exit_signal[0])
    raise Unavailable("the SSH connection was lost before the command had ended")


async def _copy(reader: asyncssh.SSHReader[bytes], sink: Sink) -> None:
    while data := await reader.read(READ_BYTES):
        sink(data)


def _signal_number(name: str) -> int:
    import signal

    return int(getattr(signal, f"SIG{name}", 0))


@contextlib.asynccontextmanager
async def connected(target: Target, context: StepContext) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Open a connection, through the bastion if there is one; it is dropped, not closed politely, at the end.

    Raises:
        Unavailable: the host does not answer, or the connection breaks.
        Refused: the host key is not known, or the login is refused.
        DefinitionError: the key cannot be used.
    """
    ssh = library("asyncssh", extra="ssh")
    if not target.known_hosts:
        (context.stderr or context.stdout)(b"warning: strict_host_key is false: the host's identity is not checked\n")
    async with contextlib.AsyncExitStack() as stack:
        with _told(ssh, target):
            async with asyncio.timeout(target.timeout_s):
                tunnel = None
                if target.bastion is not None:
                    tunnel = await ssh.connect(**_options(target.bastion, target))
                    stack.callback(tunnel.abort)
                connection = await ssh.connect(**_options(target.login, target), tunnel=tunnel or ())
                stack.callback(connection.abort)
        with _told(ssh, target):
            yield connection


def _options(login: Login, target: Target) -> dict[str, Any]:
    return {
        "host": login.host,
        "port": login.port,
        "username": login.user,
        "password": login.password or None,
        "client_keys": [login.key] if login.key else None,
        "known_hosts": target.known_hosts or None,
        "connect_timeout": target.timeout_s,
        "login_timeout": target.timeout_s,
        "keepalive_interval": KEEPALIVE_S,
        "config": None,  # what the step says is all that counts: no ~/.ssh/config, no agent
        "agent_path": None,
    }


@contextlib.contextmanager
def _told(ssh: Any, target: Target) -> Any:
    """Turn the library's errors into ours, without what a server may have put into them."""
    where = f"{target.login.host}:{target.login.port}"
    try:
        yield
    except SecureDaguError:
        raise
    except BaseExceptionGroup as group:
        found = next((error for error in group.exceptions if isinstance(error, (ssh.Error, OSError))), None)
        if found is None:
            raise
        raise Unavailable(f"the SSH connection to {where} broke", why=type(found).__name__) from None
    except ssh.HostKeyNotVerifiable:
        raise Refused(f"the host key of {where} is not trusted", why=f"{target.known_hosts} has no such key") from None
    except ssh.PermissionDenied:
        raise Refused(f"{where} refused the login of {target.login.user}", why="no key or password fits") from None
    except (ssh.KeyImportError, ssh.KeyEncryptionError) as error:
        raise DefinitionError(f"the private key for {where} cannot be used", why=str(error)) from None
    except TimeoutError:
        raise Unavailable(f"{where} did not answer within {target.timeout_s:g} s") from None
    except ssh.SFTPError as error:
        raise DefinitionError("the SFTP server refused", why=error.reason) from None
    except ssh.Error as error:
        raise Unavailable(f"the SSH connection to {where} broke", why=type(error).__name__) from None
    except OSError as error:
        raise Unavailable(f"{where} cannot be reached", why=error.strerror or type(error).__name__) from None


# ── what the author wrote ────────────────────────────────────────────────────────────────────────────────────────────


def settings_of(context: StepContext) -> Options:
    """Return root `ssh` and, above it, what an SSH or SFTP step says itself; resolved but for the commands."""
    own = context.step.inputs if context.step.kind.startswith(("ssh.", "sftp.")) else {}
    merged = {**context.dag.step_defaults.get("ssh", {}), **own}
    commands = {"command": merged.pop("command")} if "command" in merged else {}
    return Options({**resolve_tree(merged, context.scope, FieldMode.FIELD), **commands}, name="ssh")


def read_target(settings: Options, cwd: Path) -> Target:
    """Read where to go.

    Raises:
        DefinitionError: host or user is missing, or a value is not what it should be.
        Refused: there is no file of known hosts.
    """
    is_strict = settings.boolean("strict_host_key", default=True)
    known = path_below(cwd, settings.text("known_host_file") or "~/.ssh/known_hosts")
    if is_strict and not known.is_file():
        raise Refused(
            "the host key cannot be checked",
            why=f"there is no file {known}",
            fix="write the host's key there with ssh-keyscan, after comparing it",
        )
    bastion = settings.mapping("bastion")
    return Target(
        login=_login(settings, cwd),
        bastion=_login(bastion, cwd) if bastion else None,
        known_hosts=str(known) if is_strict else "",
        timeout_s=settings.seconds("timeout", CONNECT_S) or CONNECT_S,
    )


def _login(settings: Options, cwd: Path) -> Login:
    host = settings.text("host") or settings.text("ip") or settings.needed("host")
    key, password = settings.text("key"), settings.text("password")
    if key:
        key = str(path_below(cwd, key))
        if not Path(key).is_file():
            raise DefinitionError("the private key cannot be read", why=f"there is no file {key}")
    elif not password:
        known = (path_below(cwd, text) for text in DEFAULT_KEYS)
        key = next((str(path) for path in known if path.is_file()), "")
    port = settings.integer("port", 22, minimum=1, maximum=65535) if settings.text("port") else 22
    return Login(host=host, user=settings.needed("user"), port=port, key=key, password=password)


def _commands(context: StepContext, settings: Options) -> list[str]:
    """Return the texts for the other host, each wrapped in the shell that was asked for."""
    step, scope = context.step, remote_scope(context.scope)
    shell = _words(settings)
    if step.kind == "ssh.run":
        texts: Sequence[str] = settings.texts("command")
    else:
        texts = [step.script] if step.kind == "script" else step.commands
        if step.shell.program:
            shell = [step.shell.program, *step.shell.args]
        if step.kind == "script" and not shell:
            shell = ["sh", "-e"]  # what a script gets on this host
    resolved = [resolve(text, scope, FieldMode.FIELD) for text in texts]
    if not any(text.strip() for text in resolved):
        raise DefinitionError("there is no command to run")
    if step.kind != "script":  # the text of a script is in the definition only
        context.show({"commands": shown_commands(resolved)})
    return [shlex.join([*shell, "-c", text]) if shell else text for text in resolved]


def _words(settings: Options) -> list[str]:
    if isinstance(settings.any("shell"), list):
        return settings.texts("shell")
    try:
        return shlex.split(settings.text("shell"))
    except ValueError as error:
        raise DefinitionError("ssh.shell cannot be read", why=str(error)) from None
