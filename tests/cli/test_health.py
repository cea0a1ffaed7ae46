"""A probe client in the box: what it asks, what it says, how it fails."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from secure_dagu.cli.main import parse
from secure_dagu.errors import InvalidRequest, SecureDaguError, Unavailable
from secure_dagu.telemetry import health


@contextlib.asynccontextmanager
async def serving(*objections: SecureDaguError) -> AsyncIterator[int]:
    """Serve a health port as our processes do."""
    site = health.Site(
        facts=lambda: {"status": "healthy", "words": "\x1b[31mred"},
        objections=lambda: list(objections),
        exposition=lambda accept: (b"", "text/plain"),
        guard=health.anybody,
    )
    async with health.serve(site, host="127.0.0.1", port=0, key="test") as bound:
        yield bound.port


async def ask(*words: str) -> int:
    """Run the command."""
    from secure_dagu.cli import health as command

    return await command.run(parse(["health", *words]))


async def test_a_healthy_process_says_so_and_terminal_escapes_are_made_visible(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving() as port:
        assert await ask("--url", f"http://127.0.0.1:{port}/health") == 0
        out = capsys.readouterr().out
        assert '"status": "healthy"' in out
        assert "\x1b" not in out
        assert await ask("--url", f"http://localhost:{port}/ready") == 0


async def test_one_that_is_not_ready_says_why_and_is_told_by_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(Unavailable("the disk is full")) as port:
        assert await ask("--url", f"http://127.0.0.1:{port}/health") == 0
        capsys.readouterr()
        assert await ask("--url", f"http://127.0.0.1:{port}/ready") == Unavailable.exit_code
        assert "the disk is full" in capsys.readouterr().err


async def test_nothing_there_and_no_http_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGU_HOME", str(tmp_path))
    async with serving() as port:
        pass
    with pytest.raises(Unavailable, match="nothing answers"):
        await ask("--url", f"http://127.0.0.1:{port}/health")
    monkeypatch.setenv("DAGU_WORKER_HEALTH_HOST", "127.0.0.9")
    with pytest.raises(Unavailable, match=":8092"):
        await ask("worker")


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/", "http://127.0.0.1/", "file:///etc/passwd", "http://a:1/ b"])
async def test_it_asks_plain_http_and_nothing_else(url: str) -> None:
    with pytest.raises(InvalidRequest):
        await ask("--url", url)
