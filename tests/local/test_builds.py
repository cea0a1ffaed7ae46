"""Build workflows and `foreach` from the command line."""

from __future__ import annotations

import json
import re

import pytest

from tests.local.command import Host

BUILD = """
type: build
steps:
  - id: mid
    inputs: [{name: src, path: in.txt}]
    outputs: [{name: out, path: made/mid.txt}]
    run: tr a-z A-Z < ${inputs.src} > ${outputs.out}
  - id: end
    inputs: [{name: mid, path: made/mid.txt}]
    outputs: [{name: out, path: made/end.txt}]
    run: sort ${inputs.mid} > ${outputs.out}
"""


def told(out: str) -> list[str]:
    return re.findall(r"build: (.*)", out)


@pytest.fixture
def file(host: Host) -> str:
    (host.folder / "in.txt").write_text("b\na\n")
    return host.file("flow.yaml", BUILD)


def test_a_build_is_previewed_run_and_reused(host: Host, file: str) -> None:
    assert host.ok("validate", file) == ""
    assert told(host.ok("dry", file)) == ["execute (manifest_missing)", "deferred (upstream_would_execute)"]
    assert not (host.folder / "made").exists()

    assert told(host.ok("start", file)) == ["execute (manifest_missing)"] * 2
    assert (host.folder / "made/end.txt").read_text() == "A\nB\n"

    assert told(host.ok("dry", file)) == ["reuse (matched)"] * 2
    assert told(host.ok("start", file)) == ["reuse (matched)"] * 2
    assert told(host.ok("dry", "--no-reuse", file)) == ["execute (reuse_disabled)"] * 2
    assert told(host.ok("start", "--no-reuse", file)) == ["execute (reuse_disabled)"] * 2
    assert told(host.ok("status", "flow")) == ["execute (reuse_disabled)"] * 2


def test_a_retry_builds_what_failed_and_keeps_the_rest(host: Host, file: str) -> None:
    host.file("flow.yaml", BUILD.replace("run: sort", "run: test -e ok && sort"))
    assert host.run("start", file).code == 1
    run_id = host.status("flow")["dagRunId"]
    host.file("flow.yaml", BUILD)
    document = host.status("flow")
    assert [node["build"]["decision"] for node in document["nodes"]] == ["execute", "execute"]
    assert host.run("retry", "--run-id", run_id, "flow").code == 1, "a retry runs the definition that was kept"
    document = host.status("flow")
    assert document["nodes"][0]["skippedByRetry"] is True
    assert (host.folder / "made/mid.txt").read_text() == "B\nA\n"
    assert not (host.folder / "made/end.txt").exists()


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("made/end.txt", "made/../made/mid.txt", "multiple producers: mid and end"),
        ("path: in.txt", "path: made/end.txt", "failed to setup execution plan: cyclic plan detected"),
    ],
)
def test_plans_that_cannot_be_made(host: Host, file: str, before: str, after: str, error: str) -> None:
    host.file("flow.yaml", BUILD.replace(before, after))
    assert host.ok("validate", file) == ""
    done = host.run("dry", file)
    assert (done.code, done.out) == (1, "")
    assert error in done.err
    done = host.run("start", file)
    assert done.code == 1
    assert error.rpartition(": ")[2] in done.err
    assert not (host.folder / "made").exists()


def test_a_foreach_shows_its_items_in_the_record(host: Host) -> None:
    text = """
steps:
  - id: each
    output: ALL
    foreach:
      items: [one, two]
      key: ${foreach.item}
      collect: {said: "${say.output}"}
      steps: [{id: say, run: "echo ${foreach.item}", output: SAID}]
"""
    host.ok("start", host.file("flow.yaml", text))
    [node] = host.status("flow")["nodes"]
    assert node["statusDetails"] == [
        {"label": "one", "status": "succeeded"},
        {"label": "two", "status": "succeeded"},
    ]
    assert json.loads(node["outputValue"])["outputs"] == [{"said": "one"}, {"said": "two"}]
    names = {path.name.split(".")[0] for path in host.home.glob("logs/flow/*/run_*/foreach/*.out")}
    assert names == {"each_0_say", "each_1_say"}
    [outputs] = host.home.glob("data/dag-runs/flow/**/outputs.json")
    assert json.loads(json.loads(outputs.read_text())["outputs"]["all"])["summary"]["total"] == 2
