"""`ssh.run` and `run` under a root `ssh`, against a real OpenSSH server."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh
import pytest

from secure_dagu.errors import DefinitionError
from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors import ssh
from secure_dagu.runner.executors.options import Options
from tests.runner.executors.sshd import Sshd
from tests.runner.harness import Seen, run, run_and_stop

HOME = os.path.expanduser("~")


def step(sshd: Sshd, command: str, rest: str = "", **changes: str) -> str:
    inputs = f"{{{sshd.settings(**changes)}, command: {command}}}"
    return f"steps:\n  - name: a\n    action: ssh.run\n    with: {inputs}\n{rest}"


def failure(seen: Seen) -> str:
    assert seen.status is RunStatus.FAILED
    return str(seen.details()["a"]["error"])


async def test_a_command_runs_there_and_its_streams_come_back(sshd: Sshd, tmp_path: Path) -> None:
    seen = await run(step(sshd, "'echo out; echo err >&2'"), tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    assert seen.out("a") == "out\n"
    assert seen.logs["a.stderr.log"] == b"err\n"


async def test_the_remote_exit_code_is_the_steps(sshd: Sshd, tmp_path: Path) -> None:
    text = step(sshd, "exit 7", "    continue_on: {exit_code: 7}\n  - name: b\n    depends: a\n    run: 'true'\n")
    seen = await run(text, tmp_path)
    assert seen.nodes() == {"a": "failed", "b": "succeeded"}
    assert "exit status 7" in seen.details()["a"]["error"]


async def test_a_remote_command_that_a_signal_ends_fails(sshd: Sshd, tmp_path: Path) -> None:
    assert "exit status 137" in failure(await run(step(sshd, "'kill -KILL $$'"), tmp_path))


async def test_commands_of_a_list_run_in_sessions_of_their_own_to_the_first_failure(sshd: Sshd, tmp_path: Path) -> None:
    seen = await run(step(sshd, "['cd /; X=1; echo one', 'echo \"two $X-\"; pwd', 'false', 'echo four']"), tmp_path)
    assert seen.out("a") == f"one\ntwo -\n{HOME}\n"
    assert failure(seen) == "command 3 failed: exit status 1"


async def test_only_variables_of_the_run_are_expanded_here(sshd: Sshd, tmp_path: Path) -> None:
    command = "'echo ${where} $NAME [$LANG] [$NOBODY] $PWD'"
    text = "params: where=here\nenv: [{NAME: mine}]\n" + step(sshd, command)
    seen = await run(text, tmp_path, host_env={"LANG": "xx_XX", "PATH": "/usr/bin:/bin"})
    assert "xx_XX" not in seen.out("a")
    assert seen.out("a").startswith("here mine [")
    assert seen.out("a").endswith(f"[] {HOME}\n")


async def test_a_shell_wraps_the_command(sshd: Sshd, tmp_path: Path) -> None:
    seen = await run(step(sshd, "\"echo 'it''s' $0 | cat\"", shell="/bin/bash -e"), tmp_path)
    assert seen.out("a") == "its /bin/bash\n"


async def test_root_ssh_turns_run_into_ssh_and_gives_defaults(sshd: Sshd, tmp_path: Path) -> None:
    text = (
        f"type: chain\nssh: {{{sshd.settings()}}}\nsteps:\n"
        "  - {name: a, run: 'echo $SSH_CONNECTION'}\n"
        "  - {name: b, run: ['echo 1', 'echo 2'], output: OUT}\n"
        "  - name: c\n    run: |\n      false\n      echo unreached\n    continue_on: failed\n"
        "  - {name: d, action: ssh.run, with: {command: 'echo $OUT'}}\n"
    )
    seen = await run(text, tmp_path)
    assert "127.0.0.1" in seen.out("a")
    assert seen.nodes()["c"] == "failed"
    assert seen.out("d").startswith("1\n")


async def test_an_unknown_host_key_is_refused_before_login(sshd: Sshd, tmp_path: Path) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key()
    known = tmp_path / "known"
    known.write_bytes(f"[127.0.0.1]:{sshd.port} ".encode() + stranger)
    seen = await run(step(sshd, "echo no", known_host_file=str(known)), tmp_path / "run")
    assert "is not trusted" in failure(seen)
    assert "a.stdout.log" not in seen.logs or seen.out("a") == ""


async def test_without_a_file_of_known_hosts_nothing_is_trusted(sshd: Sshd, tmp_path: Path) -> None:
    seen = await run(step(sshd, "echo no", known_host_file=str(tmp_path / "none")), tmp_path / "run")
    assert "cannot be checked" in failure(seen)


async def test_host_keys_go_unchecked_only_when_asked_and_that_is_said(sshd: Sshd, tmp_path: Path) -> None:
    text = step(sshd, "echo yes", known_host_file=str(tmp_path / "none"), strict_host_key="false")
    seen = await run(text, tmp_path / "run")
    assert seen.out("a") == "yes\n"
    assert b"not checked" in seen.logs["a.stderr.log"]


async def test_a_wrong_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    assert "refused the login" in failure(await run(step(sshd, "echo no", key=str(other)), tmp_path / "run"))


async def test_the_default_key_and_known_hosts_are_those_of_the_home_folder(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "id_ed25519").write_bytes(sshd.key.read_bytes())
    (folder / "known_hosts").write_bytes(sshd.known_hosts.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = await run(step(sshd, "echo yes", key="", known_host_file=""), tmp_path / "run")
    assert seen.out("a") == "yes\n"


async def test_a_bastion_stands_between(sshd: Sshd, tmp_path: Path) -> None:
    bastion = f"{{host: 127.0.0.1, port: {sshd.port}, user: {sshd.user}, key: {sshd.key}}}"
    seen = await run(step(sshd, "'echo $SSH_CONNECTION'", bastion=bastion), tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    assert "127.0.0.1" in seen.out("a")


async def test_a_stop_drops_the_connection_at_once(sshd: Sshd, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    os.mkfifo(gone)
    noticed = asyncio.Event()
    with gone.open("r+b", buffering=0) as pipe:
        asyncio.get_running_loop().add_reader(pipe, noticed.set)
        # It can only end by writing into a connection that is no more.
        command = f"\"trap '' PIPE; echo ready; while echo tick; do sleep 0.05; done 2> /dev/null; echo gone > {gone}\""
        seen = await run_and_stop(step(sshd, command, shell="sh"), tmp_path / "run")
        assert seen.nodes() == {"a": "aborted"}
        async with asyncio.timeout(10):
            await noticed.wait()
        asyncio.get_running_loop().remove_reader(pipe)


async def test_a_timeout_fails_the_step_at_once(sshd: Sshd, tmp_path: Path) -> None:
    seen = await run(step(sshd, "'exec sleep 60'", "    timeout_sec: 1\n"), tmp_path)
    assert "timed out" in failure(seen)


async def test_a_host_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "known").write_text("")
    text = (
        "steps:\n  - name: a\n    action: ssh.run\n    with: {host: 127.0.0.1, user: u, password: p, timeout: 200ms, "
        f"port: {port}, known_host_file: {tmp_path}/known, command: x}}\n"
    )
    async with server:
        assert "did not answer within 0.2 s" in failure(await run(text, tmp_path / "run"))


async def test_a_host_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "known").write_text("")
    text = (
        "steps:\n  - name: a\n    action: ssh.run\n    with: {host: 127.0.0.1, user: u, password: hidden, port: '1', "
        f"known_host_file: {tmp_path}/known, command: x}}\n"
    )
    error = failure(await run(text, tmp_path / "run"))
    assert "127.0.0.1:1 cannot be reached" in error
    assert "hidden" not in error


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"user": "u"}, "ssh.host"),
        ({"host": "h"}, "ssh.user"),
        ({"host": "h", "user": "u", "port": "70000"}, "ssh.port"),
        ({"host": "h", "user": "u", "timeout": "soon"}, "ssh.timeout"),
        ({"host": "h", "user": "u", "key": "/nonexistent/key"}, "private key"),
        ({"host": "h", "user": "u", "bastion": {"host": "b"}}, "ssh.bastion.user"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=word):
        ssh.read_target(Options({"strict_host_key": False, **settings}, name="ssh"), tmp_path)
