"""The S3 actions, against a small server over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.executors.s3server import S3, running
from tests.runner.harness import Seen, run


@pytest.fixture
def s3() -> Iterator[S3]:
    with running() as server:
        yield server


KEYS = "access_key_id: AKID, secret_access_key: hidden, "


def step(s3: S3, action: str, inputs: str, *, bucket: str = "box", keys: str = KEYS) -> str:
    connection = f"endpoint: '{s3.url}', force_path_style: true, {keys}bucket: {bucket}"
    return f"steps:\n  - name: a\n    action: s3.{action}\n    with: {{{connection}, {inputs}}}\n"


def answer(seen: Seen) -> dict[str, Any]:
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    found: dict[str, Any] = json.loads(seen.out("a"))
    return found


def failure(seen: Seen) -> str:
    assert seen.status is RunStatus.FAILED
    return str(seen.details()["a"]["error"])


async def test_a_file_is_uploaded_with_what_is_said_about_it(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("data")
    inputs = (
        "source: f.txt, key: in/f.txt, content_type: text/plain, storage_class: GLACIER, metadata: {who: me, n: 1}, "
        "tags: {a: 'b c'}"
    )
    seen = await run(f"working_dir: {tmp_path}\n{step(s3, 'upload', inputs)}", tmp_path / "run")
    found = answer(seen)
    assert s3.objects == {"in/f.txt": b"data"}
    assert found.pop("duration").endswith("ms")
    assert found == {
        "operation": "upload", "success": True, "bucket": "box", "key": "in/f.txt", "uri": "s3://box/in/f.txt",
        "etag": "8d777f385d3dfec8815d20f7496026dc", "size": 4, "source": f"{tmp_path}/f.txt",
        "contentType": "text/plain",
    }  # fmt: skip
    _, _, headers = next(request for request in s3.seen if request[0] == "PUT")
    assert headers["content-type"] == "text/plain"
    assert headers["x-amz-storage-class"] == "GLACIER"
    assert headers["x-amz-tagging"] == "a=b+c"
    assert (headers["x-amz-meta-who"], headers["x-amz-meta-n"]) == ("me", "1")
    assert "AKID" in headers["authorization"]


async def test_an_object_is_downloaded_whole(s3: S3, tmp_path: Path) -> None:
    s3.objects["a/b.bin"] = b"x" * 3_000_000
    found = answer(await run(step(s3, "download", f"key: a/b.bin, destination: {tmp_path}/new/dir/"), tmp_path / "run"))
    target = tmp_path / "new" / "dir" / "b.bin"
    assert target.read_bytes() == s3.objects["a/b.bin"]
    assert (found["size"], found["destination"]) == (3_000_000, str(target))
    assert [path.name for path in target.parent.iterdir()] == ["b.bin"]


async def test_a_missing_object_fails_and_leaves_nothing(s3: S3, tmp_path: Path) -> None:
    seen = await run(step(s3, "download", f"key: none, destination: {tmp_path}/f"), tmp_path / "run")
    assert "no such object" in failure(seen)
    assert os.listdir(tmp_path) == ["run"]


async def test_objects_are_listed_over_pages(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {f"p/{n:04}": b"12" for n in range(1500)} | {"q": b""}
    found = answer(await run(step(s3, "list", "prefix: p/, max_keys: 1200"), tmp_path))
    assert found["totalCount"] == len(found["objects"]) == 1200
    assert found["objects"][0] == {
        "key": "p/0000", "size": 2, "lastModified": "2026-01-02T03:04:05Z", "etag": "e", "storageClass": "STANDARD",
    }  # fmt: skip


async def test_a_delimiter_folds_what_is_below(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {"a": b"", "d/x": b"", "d/y": b"", "e/z": b""}
    found = answer(await run(step(s3, "list", "delimiter: /"), tmp_path / "1"))
    assert (found["commonPrefixes"], found["totalCount"]) == (["d/", "e/"], 1)
    assert answer(await run(step(s3, "list", "delimiter: /, recursive: true"), tmp_path / "2"))["totalCount"] == 4


async def test_a_listing_may_be_lines(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {"a": b"", "b": b""}
    seen = await run(step(s3, "list", "output_format: jsonl"), tmp_path)
    assert [json.loads(line)["key"] for line in seen.out("a").splitlines()] == ["a", "b"]


async def test_quiet_says_nothing(s3: S3, tmp_path: Path) -> None:
    seen = await run(step(s3, "list", "quiet: true"), tmp_path)
    assert seen.status is RunStatus.SUCCEEDED
    assert seen.logs.get("a.stdout.log", b"") == b""


async def test_an_object_is_deleted(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {"a": b"", "b": b""}
    found = answer(await run(step(s3, "delete", "key: a"), tmp_path))
    assert (found["deletedCount"], found["deletedKeys"]) == (1, ["a"])
    assert list(s3.objects) == ["b"]


async def test_all_below_a_prefix_is_deleted_only_when_that_is_said(s3: S3, tmp_path: Path) -> None:
    s3.objects |= {f"p/{n:04}": b"" for n in range(1100)} | {"q": b""}
    assert "recursive" in failure(await run(step(s3, "delete", "prefix: p/"), tmp_path / "1"))
    found = answer(await run(step(s3, "delete", "prefix: p/, recursive: true"), tmp_path / "2"))
    assert found["deletedCount"] == 1100
    assert list(s3.objects) == ["q"]


@pytest.mark.parametrize(
    ("action", "inputs", "bucket", "word"),
    [
        ("list", "prefix: ''", "forbidden", "AccessDenied"),
        ("list", "prefix: ''", "other", "NoSuchBucket"),
        ("upload", "source: /etc/hostname, key: k", "forbidden", "bucket forbidden"),
        ("upload", "source: /nonexistent, key: k", "box", "no such file"),
        ("delete", "quiet: true", "box", "key or prefix"),
        ("list", "max_keys: 0", "box", "max_keys"),
    ],
)
async def test_what_cannot_be_done_is_told(
    s3: S3, tmp_path: Path, action: str, inputs: str, bucket: str, word: str
) -> None:
    error = failure(await run(step(s3, action, inputs, bucket=bucket), tmp_path))
    assert word in error
    assert "hidden" not in error


async def test_credentials_may_be_in_the_steps_environment(s3: S3, tmp_path: Path) -> None:
    text = "env: [{AWS_ACCESS_KEY_ID: FROMENV, AWS_SECRET_ACCESS_KEY: s}]\n" + step(s3, "list", "prefix: ''", keys="")
    answer(await run(text, tmp_path))
    assert "FROMENV" in s3.seen[0][2]["authorization"]


async def test_credentials_of_this_process_are_not_the_authors(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OURS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no S3 credentials" in failure(await run(step(s3, "list", "prefix: ''", keys=""), tmp_path / "run"))
    assert s3.seen == []


async def test_a_root_s3_gives_defaults(s3: S3, tmp_path: Path) -> None:
    s3.objects["k"] = b""
    text = f"s3: {{endpoint: '{s3.url}', force_path_style: true, {KEYS}bucket: box}}\n"
    text += "steps: [{name: a, action: s3.list}]\n"
    assert answer(await run(text, tmp_path))["totalCount"] == 1


async def test_a_stop_does_not_wait_for_a_server_that_says_nothing(s3: S3, tmp_path: Path) -> None:
    s3.holds = True
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(step(s3, "list", "prefix: ''"), tmp_path, stop=stop))
        await asyncio.to_thread(s3.asked.wait, 10)
        stop.set()
    assert running.result().nodes() == {"a": "aborted"}
