"""`mail.send`, against a real SMTP server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.harness import Seen, run
from tests.runner.mailserver import mail_server


def dag(port: int, inputs: str, root: str = "") -> str:
    smtp = f"smtp: {{host: '${{MAIL_HOST}}', port: '{port}'{root}}}\nenv: [{{MAIL_HOST: 127.0.0.1}}]\n"
    return f"{smtp}params: who=you\nsteps:\n  - name: a\n    action: mail.send\n    with: {inputs}\n"


INPUTS = "{from: me@x.test, to: [you@x.test, they@x.test], subject: 'Hi ${who}', message: \"one\\ntwo $who\"}"


def failure(seen: Seen) -> str:
    assert seen.status is RunStatus.FAILED
    return str(seen.details()["a"]["error"])


async def test_a_mail_is_sent_and_told(tmp_path: Path) -> None:
    async with mail_server() as server:
        seen = await run(dag(server.port, INPUTS), tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    assert seen.out("a") == "from: me@x.test\nto: you@x.test, they@x.test\nsubject: Hi you\nmessage: one\ntwo you\n"
    (mail,) = server.mails
    assert (mail["To"], mail["Subject"]) == ("you@x.test, they@x.test", "Hi you")
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().splitlines() == ["one", "two you"]


async def test_a_message_that_is_an_html_page_is_sent_as_one(tmp_path: Path) -> None:
    async with mail_server() as server:
        await run(dag(server.port, "{from: a@x, to: b@x, subject: s, message: '<html><b>x</b></html>'}"), tmp_path)
    assert server.mails[0].get_content_type() == "text/html"


async def test_attachments_are_below_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("numbers")
    inputs = "{from: a@x, to: b@x, subject: s, message: m, attachments: [report.txt]}"
    async with mail_server() as server:
        seen = await run(f"working_dir: {tmp_path}\n{dag(server.port, inputs)}", tmp_path / "run")
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    (file,) = server.mails[0].iter_attachments()
    assert (file.get_filename(), file.get_content()) == ("report.txt", "numbers")


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ("{from: a@x, to: b@x, subject: s, message: m, attachments: [none.txt]}", "none.txt"),
        ("{from: a@x, to: b@x, subject: \"s\\nBcc: c@x\", message: m}", "line break"),
    ],
)  # fmt: skip
async def test_what_cannot_be_sent_fails_and_sends_nothing(tmp_path: Path, inputs: str, word: str) -> None:
    async with mail_server() as server:
        assert word in failure(await run(dag(server.port, inputs), tmp_path))
    assert server.mails == []


async def test_without_a_mail_server_the_step_fails(tmp_path: Path) -> None:
    text = f"params: who=you\nsteps:\n  - name: a\n    action: mail.send\n    with: {INPUTS}\n"
    assert "no mail server" in failure(await run(text, tmp_path))


async def test_a_timeout_ends_a_server_that_says_nothing(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    text = dag(server.sockets[0].getsockname()[1], INPUTS) + "    timeout_sec: 1\n"
    async with server:
        assert "timed out" in failure(await run(text, tmp_path))
