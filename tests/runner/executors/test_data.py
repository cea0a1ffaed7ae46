"""`jq.filter`, `data.*`, `template.render` and the waits that need no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.runner.executors import data
from secure_dagu.runner.executors.options import Options
from tests.runner.executors.test_sqlite import dag, error_of, step, stopped_at
from tests.runner.harness import Seen, run


async def act(base: Path, action: str, /, **inputs: Any) -> Seen:
    return await run(dag(step("q", action, **inputs)), base)


# --------------------------------------------------------------------------------------------------------- jq.filter


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        ({"filter": ".a", "data": {"a": {"z": 1, "b": [2]}}},
         '{\n    "z": 1,\n    "b": [\n        2\n    ]\n}\n'),
        ({"filter": ".[]", "data": '["x", 1.0, null, {"a":1}]'}, '"x"\n1\nnull\n{\n    "a": 1\n}\n'),
        ({"filter": ".[]", "data": ["x\ny", 1.5, {"a": [1]}], "raw": True}, 'x\ny\n1.5\n{"a":[1]}\n'),
        ({"filter": ".", "data": 12345678901234567890}, "12345678901234567890\n"),
        ({"filter": ".n # comment", "input": "in.json"}, "7\n"),
        ({"filter": ".n", "data": "file://in.json"}, "7\n"),
        ({"filter": "empty", "data": {}}, ""),
        ({"filter": "def f: . + 1; f, f", "data": 1}, "2\n2\n"),
    ],
)  # fmt: skip
async def test_jq_prints_results_one_after_another(tmp_path: Path, inputs: dict[str, Any], out: str) -> None:
    (tmp_path / "work").mkdir(mode=0o700)
    (tmp_path / "work/in.json").write_text('{"n": 7}')
    seen = await act(tmp_path, "jq.filter", **inputs)
    assert seen.nodes() == {"q": "succeeded"}
    assert seen.logs.get("q.stdout.log", b"").decode() == out


@pytest.mark.parametrize(
    ("program", "text"), [(".[", "{}"), ('error("boo")', "{}"), (".", "{bad"), (".a", '"x"'), (".", "")]
)
async def test_a_jq_program_that_fails_fails_the_step(tmp_path: Path, program: str, text: str) -> None:
    seen = await act(tmp_path, "jq.filter", filter=program, data=text)
    assert seen.nodes()["q"] == ("succeeded" if not text else "failed")


async def test_a_jq_program_without_end_is_stopped(tmp_path: Path) -> None:
    seen = await stopped_at(dag(step("q", "jq.filter", filter="def f: f; f", data={})), tmp_path)
    assert seen.nodes() == {"q": "aborted"}


async def test_jq_sees_the_environment_of_the_step_and_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "hidden")
    entry = {**step("q", "jq.filter", filter="env | [.OWN, .SECRET_OF_THE_WORKER]", data={}), "env": {"OWN": "v"}}
    seen = await run(dag(entry), tmp_path)
    assert json.loads(seen.out("q")) == ["v", None]


# --------------------------------------------------------------------------------------------------------- data.*


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        ({"from": "csv", "to": "json", "data": "a,b\n1,\n"}, '[\n  {\n    "a": "1",\n    "b": ""\n  }\n]\n'),
        ({"from": "csv", "to": "yaml", "data": "1,x\n", "has_header": False}, "- - '1'\n  - x\n"),
        ({"from": "csv", "to": "yaml", "data": "1;x\n", "has_header": False, "columns": ["n", "m"], "delimiter": ";"},
         "- n: '1'\n  m: x\n"),
        ({"from": "json", "to": "csv", "data": '[{"b":1,"a":true},{"c":null}]'}, "b,a,c\n1,true,\n,,\n"),
        ({"from": "json", "to": "tsv", "data": [{"a": 1, "b": 2}], "columns": ["b"], "headers": False}, "2\n"),
        ({"from": "tsv", "to": "json", "data": 'a\n"x\ty"\n'}, '[\n  {\n    "a": "x\\ty"\n  }\n]\n'),
        ({"from": "yaml", "to": "json", "data": "a: &x {n: 1.0}\nb: *x"},
         '{\n  "a": {\n    "n": 1\n  },\n  "b": {\n    "n": 1\n  }\n}\n'),
        ({"from": "text", "to": "json", "data": "a\nb"}, '"a\\nb"\n'),
        ({"from": "json", "to": "text", "data": '{"a": [1]}'}, '{"a":[1]}\n'),
        ({"from": "json", "to": "yaml", "data": '"plain"'}, "plain\n"),
        ({"from": "json", "to": "yaml", "data": '{"a":null,"b":[null,"no","On","1:30","nope"]}'},
         "a: null\nb:\n- null\n- 'no'\n- 'On'\n- '1:30'\n- nope\n"),
    ],
)  # fmt: skip
async def test_convert(tmp_path: Path, inputs: dict[str, Any], out: str) -> None:
    seen = await act(tmp_path, "data.convert", **inputs)
    assert seen.nodes() == {"q": "succeeded"}, error_of(seen)
    assert seen.out("q") == out


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("yaml", BOMB), ("yaml", "a: 1\n---\nb: 2"), ("yaml", "a: [" * 5000), ("yaml", "!!python/object:os.system x"),
        ("json", "[" * 100_000), ("json", "{"), ("csv", "a,b\n1,2,3\n"), ("csv", "a,a\n1,2\n"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_fails(tmp_path: Path, form: str, text: str) -> None:
    seen = await act(tmp_path, "data.convert", **{"from": form, "to": "json", "data": text})
    assert seen.nodes() == {"q": "failed"}
    assert "workflow" not in error_of(seen)


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        ({"select": ".a.b[1]", "raw": True}, "y\n"),
        ({"select": ".a.b[1]"}, '"y"\n'),
        ({"select": ".a.b[]", "raw": True}, "x\ny\n"),
        ({"select": ".a", "to": "yaml"}, "b:\n- x\n- y\n"),
        ({"select": ".a", "raw": True}, '{"b":["x","y"]}\n'),
        ({"select": ".none", "raw": True}, "null\n"),
    ],
)
async def test_pick(tmp_path: Path, inputs: dict[str, Any], out: str) -> None:
    seen = await act(tmp_path, "data.pick", **{"from": "yaml", "data": "a: {b: [x, y]}", **inputs})
    assert seen.out("q") == out


_ODD = st.sampled_from(
    ["0o17", "0123", "1_000", "1e3", "~", "yes", "<<", "=", "2020-01-01", "1:30", "- x", "a: b", "\r", "é\x85\u2028b"]
)
_TEXT = _ODD | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TEXT.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_JSON)
def test_what_is_written_as_yaml_reads_the_same(value: Any) -> None:
    options = Options({})
    assert data._from_yaml(data._to_yaml(value, options), options) == value


# ---------------------------------------------------------------------------------------------------- template.render


async def test_a_template_is_never_resolved_and_its_data_is(tmp_path: Path) -> None:
    entry = step("q", "template.render", template="${CITY} {{ .c }} {{ .n | upper }}", data={"c": "$CITY", "n": "x"})
    seen = await run(dag(entry, env={"CITY": "Oslo"}), tmp_path)
    assert seen.out("q") == "${CITY} Oslo X"


async def test_a_rendered_file_appears_and_stdout_stays_empty(tmp_path: Path) -> None:
    seen = await act(tmp_path, "template.render", template="hi {{ .n }}", data={"n": 1}, output="a/b/f")
    assert (tmp_path / "work/a/b/f").read_text() == "hi 1"
    assert "q.stdout.log" not in seen.logs


async def test_a_template_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o700)
    (tmp_path / "work/f").write_text("old")
    seen = await act(tmp_path, "template.render", template="{{ .missing }}", data={"n": 1}, output="f")
    assert seen.nodes() == {"q": "failed"}
    assert (tmp_path / "work/f").read_text() == "old"


@pytest.mark.parametrize(
    ("ref", "word"),
    [("${env.T}", "succeeded"), ("x ${env.T}", "failed"), ("${env.NONE}", "failed"), ("${env.EMPTY}", "failed")],
)
async def test_a_template_ref_is_exactly_one_reference_with_a_value(tmp_path: Path, ref: str, word: str) -> None:
    entry = step("q", "template.render", template_ref=ref, data={"n": "v"})
    seen = await run(dag(entry, env={"T": "{{ .n }} $HOME", "EMPTY": ""}), tmp_path)
    assert seen.nodes() == {"q": word}
    if word == "succeeded":
        assert seen.out("q").startswith("v ")


# --------------------------------------------------------------------------------------------------------- waits


@pytest.mark.parametrize(
    ("action", "inputs"),
    [
        ("wait.duration", {"duration": "1ms"}), ("wait.until", {"until": "2001-02-03T04:05:06+01:00"}),
        ("wait.file", {"path": "/etc"}), ("wait.file", {"path": "none", "state": "missing"}),
    ],
)  # fmt: skip
async def test_a_wait_that_is_over_ends(tmp_path: Path, action: str, inputs: dict[str, Any]) -> None:
    assert (await act(tmp_path, action, **inputs)).nodes() == {"q": "succeeded"}


@pytest.mark.parametrize(
    ("action", "inputs"),
    [
        ("wait.duration", {"duration": "1000h"}), ("wait.until", {"until": "2999-01-01T00:00:00Z"}),
        ("wait.file", {"path": "none"}),
    ],
)  # fmt: skip
async def test_a_stop_ends_a_wait_at_once(tmp_path: Path, action: str, inputs: dict[str, Any]) -> None:
    assert (await stopped_at(dag(step("q", action, **inputs)), tmp_path)).nodes() == {"q": "aborted"}


@pytest.mark.parametrize("until", ["tomorrow", "2999-01-01", "2999-01-01T00:00:00"])
async def test_a_moment_needs_a_zone(tmp_path: Path, until: str) -> None:
    assert "RFC 3339" in error_of(await act(tmp_path, "wait.until", until=until))
