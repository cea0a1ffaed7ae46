from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.harness import run

NEEDS = [
    ("postgres.query", {"dsn": "host=x", "query": "SELECT 1"}, "psycopg", "postgres"),
    ("redis.ping", {}, "redis", "redis"),
    ("archive.list", {"source": "a.7z"}, "py7zr", "archive"),
    ("archive.list", {"source": "a.rar"}, "rarfile", "archive"),
    ("archive.list", {"source": "a.tar.zst"}, "zstandard", "archive"),
    ("archive.list", {"source": "a.tar.lz4"}, "lz4.frame", "archive"),
]


@pytest.mark.parametrize(("action", "inputs", "missing", "extra"), NEEDS)
async def test_a_missing_library_is_named_with_the_way_to_get_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    inputs: dict[str, Any],
    missing: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # which is how Python remembers that there is none
    (tmp_path / "work").mkdir(mode=0o700)
    for name in ("a.7z", "a.rar", "a.tar.zst", "a.tar.lz4"):
        (tmp_path / "work" / name).touch()
    seen = await run(json.dumps({"steps": [{"id": "q", "action": action, "with": inputs}]}), tmp_path)
    assert seen.status is RunStatus.FAILED
    assert f"pip install 'secure-dagu[{extra}]'" in seen.details()["q"]["error"]
