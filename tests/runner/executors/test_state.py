"""`state.*` over what the run's owner keeps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.dispatch.model import StateRef
from secure_dagu.run.model import DagRunRef, RunStatus
from tests.runner.executors.test_sqlite import dag, error_of, step
from tests.runner.harness import Children, run


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


@pytest.fixture
def kept() -> Children:
    return Children()


async def act(kept: Children, base: Path, name: str, **inputs: Any) -> tuple[str, str]:
    """Return stdout and the error of one action."""
    (base / "logs" / "q.stdout.log").unlink(missing_ok=True)
    seen = await run(dag(step("q", f"state.{name}", **inputs)), base, children=kept, root=DagRunRef("top", "r0"))
    failed = seen.status is not RunStatus.SUCCEEDED
    return seen.logs.get("q.stdout.log", b"").decode(), error_of(seen) if failed else ""


async def test_a_value_is_set_and_got(kept: Children, tmp_path: Path) -> None:
    value = {"b": 1, "a": [True, None]}
    head = '"scope":"dag","namespace":"demo","key":"k/1"'
    out, _ = await act(kept, tmp_path, "set", key="k/1", value=value)
    assert out == f'{{"operation":"set",{head},"version":1,"hash":"{digest(value)}","created":true}}\n'
    out, _ = await act(kept, tmp_path, "get", key="k/1")
    found = f'"found":true,"version":1,"hash":"{digest(value)}","value":{{"b":1,"a":[true,null]}}'
    assert out == f'{{"operation":"get",{head},{found}}}\n'
    out, _ = await act(kept, tmp_path, "set", key="k/1", value="x")
    assert json.loads(out)["version"] == 2
    assert json.loads(out)["created"] is False


async def test_what_is_missing_has_a_default_or_fails(kept: Children, tmp_path: Path) -> None:
    out, _ = await act(kept, tmp_path, "get", key="k", default=[1])
    assert out.endswith('"found":false,"version":0,"hash":"","value":[1]}\n')
    assert (await act(kept, tmp_path, "get", key="k"))[0].endswith('"found":false,"version":0,"hash":""}\n')
    assert "does not exist" in (await act(kept, tmp_path, "get", key="k", required=True))[1]


async def test_conflicts_fail(kept: Children, tmp_path: Path) -> None:
    await act(kept, tmp_path, "set", key="k", value=1)
    for guard in ({"create_only": True}, {"expected_version": 0}, {"expected_version": 7}):
        assert "conflict" in (await act(kept, tmp_path, "set", key="k", value=2, **guard))[1]
    assert "conflict" in (await act(kept, tmp_path, "diff", key="k", value=1, expected_version=7))[1]
    assert not (await act(kept, tmp_path, "set", key="k", value=2, expected_version=1))[1]


async def test_diff_compares_and_keeps(kept: Children, tmp_path: Path) -> None:
    first = json.loads((await act(kept, tmp_path, "diff", key="k", value={"a": 1, "b": 2}))[0])
    assert list(first)[4:] == ["changed", "foundPrevious", "previousVersion", "version", "hash", "current"]
    assert (first["changed"], first["foundPrevious"], first["version"]) == (True, False, 1)
    same = json.loads((await act(kept, tmp_path, "diff", key="k", value={"b": 2, "a": 1}))[0])
    assert list(same)[4:] == ["changed", "foundPrevious", "previousVersion", "version", "hash", "previous", "current"]
    assert (same["changed"], same["previousVersion"], same["version"]) == (False, 1, 1)
    told = json.loads((await act(kept, tmp_path, "diff", key="k", value=3, update=False))[0])
    assert (told["changed"], told["version"], told["current"], told["hash"]) == (True, 1, 3, digest(3))
    assert json.loads((await act(kept, tmp_path, "get", key="k"))[0])["value"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("before", [1, 0, [1]])
async def test_a_number_is_not_a_boolean(kept: Children, tmp_path: Path, before: Any) -> None:
    await act(kept, tmp_path, "set", key="k", value=before)
    after = [True] if isinstance(before, list) else bool(before)
    assert json.loads((await act(kept, tmp_path, "diff", key="k", value=after))[0])["changed"] is True


async def test_list_and_delete(kept: Children, tmp_path: Path) -> None:
    for key in ("a/1", "a/2", "b"):
        await act(kept, tmp_path, "set", key=key, value=key)
    listed = json.loads((await act(kept, tmp_path, "list", prefix="a/", limit=1, include_values=True))[0])
    assert listed["prefix"] == "a/"
    entry_keys = ["scope", "namespace", "key", "version", "hash", "createdAt", "updatedAt", "value"]
    assert [list(entry) for entry in listed["entries"]] == [entry_keys]
    assert [len(json.loads((await act(kept, tmp_path, "list"))[0])["entries"])] == [3]
    for deleted in (True, False):
        assert json.loads((await act(kept, tmp_path, "delete", key="b"))[0])["deleted"] is deleted


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ({}, ("dag", "demo")),
        ({"scope": "root_dag"}, ("root_dag", "top")),
        ({"scope": "global"}, ("global", "_")),
        ({"scope": "custom", "namespace": "team"}, ("custom", "team")),
    ],
)
async def test_each_scope_has_its_namespace(
    kept: Children, tmp_path: Path, inputs: dict[str, Any], place: tuple[str, str]
) -> None:
    assert not (await act(kept, tmp_path, "set", key="k", value=1, **inputs))[1]
    assert list(kept.state) == [StateRef(*place, "k")]


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "x" * 1025])
async def test_keys_that_climb_are_refused(kept: Children, tmp_path: Path, key: str) -> None:
    assert "no state key" in (await act(kept, tmp_path, "set", key=key, value=1))[1]


@pytest.mark.parametrize(
    "inputs",
    [{"scope": "custom"}, {"scope": "custom", "namespace": "a/b"}, {"scope": "other"}, {"namespace": "foreign"}],
)
async def test_bad_namespaces_are_refused(kept: Children, tmp_path: Path, inputs: dict[str, Any]) -> None:
    assert (await act(kept, tmp_path, "set", key="k", value=1, **inputs))[1]
    assert not kept.state


async def test_a_value_above_one_mebibyte_is_refused(kept: Children, tmp_path: Path) -> None:
    assert not (await act(kept, tmp_path, "set", key="k", value="x" * (2**20 - 2)))[1]
    assert "too large" in (await act(kept, tmp_path, "set", key="k", value="x" * (2**20 - 1)))[1]
