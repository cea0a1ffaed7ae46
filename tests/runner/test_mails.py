"""Mails about runs and steps: which are due, what they say, what they carry."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.runner.mails import MAX_CELL, MAX_ROWS, Row, body, page_of, subject
from tests.runner.harness import RUN, run
from tests.runner.mailserver import MailServer, mail_server

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(**changes: str) -> Row:
    values = {"name": "a", "status": "failed", "command": "false", "error": "exit status 1", **changes}
    return Row(started_at=AT, finished_at=None, **values)


def dag(server: MailServer, rest: str) -> str:
    addresses = "".join(
        f"{which}_mail: {{from: dagu@x.test, to: {which}@x.test, prefix: '[{which}]', attach_logs: true}}\n"
        for which in ("error", "info", "wait")
    )
    return f"smtp: {{host: 127.0.0.1, port: {server.port}}}\n{addresses}{rest}"


def content(server: MailServer) -> str:
    part = server.mails[0].get_body(("html",))
    assert part is not None
    return str(part.get_content())


async def test_a_failed_run_is_told_with_its_nodes_and_their_logs(tmp_path: Path) -> None:
    text = "mail_on: {failure: true, success: true}\nsteps:\n  - {name: good, run: echo fine}\n"
    text += "  - {name: bad, run: 'echo \"<oops>\" >&2; exit 3'}\n"
    async with mail_server() as server:
        seen = await run(dag(server, text), tmp_path)
    assert seen.status is RunStatus.FAILED
    (mail,) = server.mails
    assert server.recipients == [["error@x.test"]]
    assert mail["Subject"] == "[error] demo (failed)"
    html = content(server)
    for word in ("good", "bad", "succeeded", "failed", "echo fine", "exit status 3", "&lt;oops&gt;"):
        assert word in html
    assert "<oops>" not in html
    files = {part.get_filename(): part.get_content() for part in mail.iter_attachments()}
    assert [text for name, text in files.items() if "good" in str(name)] == ["fine\n"]
    assert [text for name, text in files.items() if "bad" in str(name)] == ["<oops>\n"]


@pytest.mark.parametrize(
    ("mail_on", "steps", "wanted"),
    [
        ("success: true", "[{name: a, run: 'true'}]", "[info] demo (succeeded)"),
        (
            "success: true",
            "[{name: a, run: 'false', continue_on: failed}, {name: b, run: 'true', depends: a}]",
            "[info] demo (partially_succeeded)",
        ),
        ("wait: true", "[{name: a, run: 'true', approval: {prompt: ok}}]", "[wait] demo (waiting)"),
        ("failure: true", "[{name: a, run: 'true'}]", ""),
        ("success: true", "[{name: a, run: 'false'}]", ""),
        ("failure: false", "[{name: a, run: 'false'}]", ""),
    ],
)
async def test_a_mail_is_sent_for_what_was_asked_for(tmp_path: Path, mail_on: str, steps: str, wanted: str) -> None:
    async with mail_server() as server:
        await run(dag(server, f"mail_on: {{{mail_on}}}\nsteps: {steps}\n"), tmp_path)
    assert [mail["Subject"] for mail in server.mails] == ([wanted] if wanted else [])


async def test_a_step_tells_of_its_own_failure_once_its_retries_are_used_up(tmp_path: Path) -> None:
    text = "steps:\n  - name: a\n    run: 'false'\n    mail_on_error: true\n    continue_on: failed\n"
    text += "    retry_policy: {limit: 1, interval_sec: 0}\n  - {name: b, run: 'true', depends: a}\n"
    async with mail_server() as server:
        seen = await run(dag(server, text), tmp_path)
    assert seen.status is RunStatus.PARTIALLY_SUCCEEDED
    assert [mail["Subject"] for mail in server.mails] == ["[error] demo (failed)"]


async def test_secrets_are_hidden_and_scripts_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    text = f"mail_on: {{success: true}}\nsecrets: [{{name: S, provider: file, key: {tmp_path}/secret}}]\n"
    text += "steps:\n  - {name: a, run: 'echo ${env.S}'}\n  - name: b\n    run: |\n      : private words\n      true\n"
    async with mail_server() as server:
        await run(dag(server, text), tmp_path / "run")
    html = content(server)
    assert "*******" in html
    assert b"hunter2" not in server.raw[0]
    assert "private words" not in html


async def test_a_mail_leads_to_the_page_of_its_run(tmp_path: Path) -> None:
    text = "mail_on: {success: true}\nsteps: [{name: a, run: 'true'}]\n"
    async with mail_server() as server:
        await run(dag(server, text), tmp_path, public_url="https://dagu.example.org/flows")
    wanted = page_of("https://dagu.example.org/flows", run=RUN, root=RUN)
    assert wanted == f"https://dagu.example.org/flows/dag-runs/{RUN.name}/{RUN.run_id}"
    assert f'<a href="{wanted}">{RUN.run_id}</a>' in content(server)


def test_the_page_of_a_child_is_below_its_root_and_without_a_url_there_is_none() -> None:
    child = DagRunRef("part", "c&1")
    assert page_of("https://x", run=child, root=RUN) == f"https://x/dag-runs/{RUN.name}/{RUN.run_id}?child=c%261"
    assert page_of("", run=child, root=RUN) == ""
    assert "<a " not in body("d", "r", "failed", [row()])
    assert 'href="https://x/&quot;&gt;"' in body("d", "r", "failed", [row()], url='https://x/">')


async def test_a_mail_that_cannot_be_sent_does_not_change_the_run(tmp_path: Path) -> None:
    text = "smtp: {host: 127.0.0.1, port: 1}\nmail_on: {success: true}\ninfo_mail: {from: a@x, to: b@x}\n"
    seen = await run(text + "steps: [{name: a, run: 'true'}]\n", tmp_path)
    assert seen.status is RunStatus.SUCCEEDED
    assert [fields["mail"] for _, message, fields in seen.lines if message == "Mail not sent"] == ["info_mail"]


@pytest.mark.parametrize(("prefix", "wanted"), [("[P]", "[P] d (failed)"), ("", "d (failed)")])
def test_the_subject_is_prefix_name_and_status(prefix: str, wanted: str) -> None:
    assert subject(prefix, "d", "failed") == wanted


def test_everything_in_the_table_is_text_and_nothing_is_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    html = body(evil, evil, evil, [row(name=evil, status=evil, command=evil, error=evil)])
    assert "<script>" not in html
    assert "2026-01-02 03:04:05Z" in html


def test_a_table_has_an_end() -> None:
    html = body("d", "r", "failed", [row(error="x" * 10_000)] * (MAX_ROWS + 5))
    assert html.count("<tr>") == MAX_ROWS + 2
    assert "and 5 more" in html
    assert "x" * (MAX_CELL + 1) not in html
