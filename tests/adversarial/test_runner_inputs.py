"""What authors, steps and other workers hand to a runner never breaks it, hangs it or reaches past its folders.

The worst that any of it may do is fail its own step or its own run, with a final document.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from secure_dagu.run.model import RunStatus
from secure_dagu.runner.api import ChildRequest, ChildResult
from secure_dagu.runner.executors.dag_run import child_outputs
from tests.runner.harness import HOST_ENV, Children, run

KID = "steps: [{name: k, run: 'true'}]"


@pytest.mark.parametrize(
    "step",
    [
        'working_dir: "a\\0b"',
        'stdout: "a\\0b"',
        'stdout: {artifact: "a\\0b"}',
        'output: {f: {from: file, path: "a\\0b"}}',
        'stdout: {artifact: "${env.UP}/x"}',
        "working_dir: /proc/1/nowhere",
        "stdout: .",
        "output: {f: {from: file, path: pipe}}",
        "output: {f: {from: file, path: link}}",
        "stdout: {outputs: {field: x, decode: json}}",
        'env: {A: "x\\0y"}',
    ],
)
async def test_a_field_that_makes_no_sense_fails_its_step(tmp_path: Path, step: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").write_text("outside")
    os.mkfifo(tmp_path / "work" / "pipe")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "secret")
    deep = "head -c 100000 /dev/zero | tr '\\\\000' '['"
    text = f'env: [UP: ..]\nsteps: [{{name: a, run: "{deep}", {step}}}, {{name: b, run: echo on}}]'
    seen = await run(text, tmp_path)
    assert seen.nodes() == {"a": "failed", "b": "succeeded"}, seen.details()
    assert not (tmp_path / "x").exists()
    assert "outside" not in json.dumps(seen.documents)


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x"])
async def test_an_artifact_that_climbs_fails_the_run_before_any_step(tmp_path: Path, path: str) -> None:
    seen = await run(f"steps: [{{name: a, run: echo x, stdout: {{artifact: {path}}}}}]", tmp_path)
    assert seen.status is RunStatus.FAILED
    assert len(seen.documents) == 1
    assert not seen.logs


async def test_a_home_directory_that_there_is_not_is_an_ordinary_name(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, working_dir: ~nobody-of-this-name/x, run: pwd}]", tmp_path)
    assert seen.out("a") == f"{tmp_path}/work/~nobody-of-this-name/x\n"


async def test_bytes_that_are_no_text_go_through_a_run(tmp_path: Path) -> None:
    host = {**HOST_ENV, "RAW": os.fsdecode(b"\xff-raw"), "TOKEN": os.fsdecode(b"\xfe-token")}
    text = r"""
secrets: [{name: S, provider: env, key: TOKEN}]
env: [R: "${env.RAW}"]
steps:
  - {name: a, run: 'echo "${env.R} $S"', output: O}
  - {name: b, depends: a, action: log.write, with: {message: "${env.R} ${env.S}"}}
  - name: c
    run: |
      #!/bin/sh
      echo "${env.R} ${env.S}"
  - {name: d, action: outputs.write, with: {values: {k: "${env.R} ${env.S}"}}}
"""
    seen = await run(text, tmp_path, host_env=host)
    assert seen.status is RunStatus.SUCCEEDED, seen.details()
    for step in "abc":
        assert seen.logs[f"{step}.stdout.log"] == b"\xff-raw *******\n"
    seen.final_text.encode()  # what goes over the wire is UTF-8


async def test_a_parameter_that_no_program_can_be_given_fails_what_uses_it(tmp_path: Path) -> None:
    text = "params: [{name: P, default: x}]\nsteps: [{name: a, run: 'echo ${params.P}'}]"
    seen = await run(text, tmp_path, params='{"P": "lone \\ud800"}')
    assert seen.status is RunStatus.FAILED
    seen.final_text.encode()


@pytest.mark.parametrize("kind", ["binary", "huge", "pipe", "folder", "missing"])
async def test_a_secret_file_is_read_within_a_limit_or_fails_the_run(tmp_path: Path, kind: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = work / "key"
    match kind:
        case "binary":
            path.write_bytes(b"\xff\xfe")
        case "huge":
            path.write_bytes(b"x" * (2**20 + 1))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            pass
    text = "secrets: [{name: S, provider: file, key: key}]\nsteps: [{name: a, run: 'true'}]"
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.FAILED
    assert seen.nodes() == {"a": "not_started"}
    assert "secret S" in seen.final["error"]


async def test_a_secret_file_is_handed_on_unchanged_through_links(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "..data").write_bytes(b"one\r\ntwo\n")
    (work / "key").symlink_to("..data")
    text = (
        "secrets: [{name: S, provider: file, key: key}]\n"
        'steps: [{name: a, run: \'printf %s "$S" > copy; printf "%s|" "$S"\'}]'
    )
    seen = await run(text, tmp_path)
    assert (work / "copy").read_bytes() == b"one\r\ntwo\n"
    assert seen.out("a") == "*******|"


async def test_a_dotenv_file_that_cannot_be_read_is_logged_and_passed_over(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / ".env").write_bytes(b"A=\xff")
    os.mkfifo(work / "pipe.env")
    (work / "good.env").write_text("B=2\n")
    text = "dotenv: [pipe.env, good.env]\nsteps: [{name: a, run: 'echo $B'}]"
    seen = await run(text, tmp_path)
    assert seen.out("a") == "2\n"
    lines = [json.loads(line) for line in seen.logs["scheduler.log"].splitlines()]
    assert sum(line["level"] == "WARN" for line in lines) == 2


async def test_what_is_written_the_old_way_is_said_once(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, command: 'true'}]", tmp_path)
    warnings = seen.final["warnings"]
    assert any("deprecated" in warning for warning in warnings)
    assert len(warnings) == len(set(warnings))


async def test_a_file_that_the_author_named_exists_even_if_the_step_printed_nothing(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: 'true', stdout: o.txt, stderr: e.txt}, {name: b, depends: a, run: cat o.txt e.txt}]"
    assert (await run(text, tmp_path)).status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    "document",
    [
        "", "[]", "null", "{", "[" * 100_000, '{"nodes": 7}', '{"nodes": [7, null, []]}',
        '{"nodes": [{"outputVariables": [1], "outputsValue": 7, "stepOutputsValue": "[1]"}]}',
    ],
)  # fmt: skip
async def test_a_childs_document_that_makes_no_sense_publishes_nothing(tmp_path: Path, document: str) -> None:
    assert child_outputs(document) == ({}, {})
    children = Children(texts={"kid": KID})
    children.end = lambda request: ChildResult(status=RunStatus.SUCCEEDED, document=document)
    seen = await run("steps: [{name: a, action: dag.run, with: {dag: kid}}]", tmp_path, children=children)
    assert seen.nodes() == {"a": "succeeded"}


@pytest.mark.parametrize("main", ["", "---\n", "# said first\n--- # main\n", "%YAML 1.1\n---\n"])
@pytest.mark.parametrize("kid", ["name: kid", "'name': kid", "name:   'kid'  # it", "name : kid"])
async def test_a_local_document_is_found_however_it_is_written(tmp_path: Path, main: str, kid: str) -> None:
    text = f"""{main}steps: [{{name: a, action: dag.run, with: {{dag: kid}}}}]
---
name: other
steps: [{{name: o, run: 'name: kid'}}]
--- # empty
---
{kid}
steps: [{{name: k, run: 'true'}}]
...
"""
    children = Children()
    seen = await run(text, tmp_path, children=children)
    assert seen.status is RunStatus.SUCCEEDED, seen.details()
    (request,) = children.requests
    assert request.definition.index("kid\n" if "#" not in kid else "# it") < request.definition.index("name: other")


async def test_a_fan_out_asks_for_its_definition_once(tmp_path: Path) -> None:
    class Counting(Children):
        asked = 0

        async def dag_text(self, name: str) -> str | None:
            self.asked += 1
            return KID

        async def run(self, request: ChildRequest) -> ChildResult:
            return ChildResult(status=RunStatus.SUCCEEDED, document="{}")

    children = Counting()
    items = ", ".join(f"i{n}" for n in range(50))
    text = f"steps: [{{name: a, action: dag.run, with: {{dag: kid}}, parallel: [{items}]}}]"
    seen = await run(text, tmp_path, children=children)
    assert seen.status is RunStatus.SUCCEEDED
    assert children.asked == 1


async def test_a_secret_is_in_no_argument_of_the_processes(tmp_path: Path) -> None:
    text = (
        "secrets: [{name: S, provider: env, key: TOKEN}]\n"
        "steps: [{name: a, run: \"cat /proc/$$/cmdline | tr '\\\\0' '\\\\n' > argv; echo $S\"}]"
    )
    seen = await run(text, tmp_path, host_env={**HOST_ENV, "TOKEN": "canary-canary"})
    assert seen.out("a") == "*******\n"
    assert "canary" not in (tmp_path / "work" / "argv").read_text()
