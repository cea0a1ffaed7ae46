"""One workflow, run on this host and on a worker: the same steps, the same statuses, the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.system.conftest import Cluster

FLOW = """
consts: [{greeting: hello}]
params: [{name: who, default: world}, {name: n, type: integer, default: 3}]
env:
  - TEXT: ${consts.greeting} ${params.who}
  - DOC: '{"a": [1, {"b": "deep"}]}'
preconditions: 'test "$TEXT" = "hello world"'
handler_on:
  init: {run: echo init}
  success: {run: 'echo "$DAG_RUN_STATUS ${json.output.a}"'}
  exit: {run: 'echo ${context.run.status}'}
steps:
  - {id: json, run: 'echo ''{"a": 7}''', output: J}
  - id: declared
    run: printf 'k=v=w\\nj<<E\\n[1,2]\\nE\\n' > "$DAGU_OUTPUT_FILE"
    outputs: [{name: k}, {name: j, type: json}]
  - id: uses
    run: echo "${steps.declared.outputs.k} ${J.a} ${DOC.a[1].b} $TEXT"
    depends: [json, declared]
    output: U
  - id: retried
    run: echo x >> count; test "$(wc -l < count)" -ge 2
    retry_policy: {limit: 2, interval_sec: 0}
  - {id: accepted, run: exit 4, continue_on: {exit_code: 4, mark_success: true}}
  - {id: skipped, run: 'true', preconditions: [{condition: '${params.who}', expected: nobody}]}
  - id: route
    action: router.route
    with: {value: '${params.who}', routes: {world: [yes_], other: [no_]}}
  - {id: yes_, run: echo routed}
  - {id: no_, run: echo never}
  - id: each
    foreach:
      items: [1, 2]
      steps: [{id: body, run: 'echo item-${foreach.item}', output: B}]
      collect: {b: '${body.output}'}
    output: EACH
  - {id: write, action: file.write, with: {path: note.txt, content: '$TEXT ${params.n}', mode: '0600'}}
  - {id: read, action: file.read, with: {path: note.txt}, depends: write, output: NOTE}
  - {id: picked, action: jq.filter, with: {filter: '.a[1].b', data: '${env.DOC}', raw: true}, output: PICKED}
  - id: shown
    action: template.render
    with: {template: '{{ range .list }}<{{ . | upper }}>{{ end }}', data: {list: [a, '${params.who}']}}
    output: SHOWN
  - id: script
    run: |
      #!/bin/sh
      echo "script $TEXT"
    output: S
  - {id: call, action: dag.run, with: {dag: child, params: 'x=${ITEM}'}, parallel: {items: [p, q]}}
  - {id: sum, run: 'echo ${call.outputs.summary.succeeded}', depends: call, output: SUM}
---
name: child
params: [{x: ''}]
steps: [{id: c, run: 'echo child-$x', output: C}]
"""


def told(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a run amounts to: its status, and of each node its status and what it published."""
    nodes = [*document["nodes"], *(document[key] for key in ("onInit", "onSuccess", "onExit"))]
    kept = ("status", "outputVariables", "outputValue", "outputsValue", "stepOutputsValue", "retryCount", "doneCount")
    published = {node["step"]["name"]: {key: node[key] for key in kept if key in node} for node in nodes}
    return {"status": document["status"], "nodes": published}


def test_a_run_here_and_a_run_on_a_worker_amount_to_the_same(running: Cluster, tmp_path: Path) -> None:
    flow = tmp_path / "flow.yaml"
    flow.write_text(FLOW)
    here = running.host.run("start", str(flow), "-r", "same")
    assert here.returncode == 0, here
    [status] = running.host.home.glob("data/dag-runs/flow/dag-runs/*/*/*/*_same/a_*/status.jsonl")
    local = told(json.loads(status.read_text()))
    running.host.ok("dispatch", str(flow), running.operator, "-r", "same", "--follow")
    remote = json.loads(running.host.ok("status", "flow", "-r", "same", running.operator, "--json"))["run"]
    assert local["status"] == 4
    assert {name: node["status"] for name, node in local["nodes"].items()} == statuses(remote)
    assert local["nodes"]["sum"]["outputValue"] == "2"
    assert local["nodes"]["each"]["outputValue"].endswith('"outputs":[{"b":"item-1"},{"b":"item-2"}]}')


def statuses(run: dict[str, Any]) -> dict[str, int]:
    """Return the number of each node's status in the JSON of a coordinator's run."""
    words = ("not_started", "running", "failed", "aborted", "succeeded", "skipped", "partially_succeeded", "waiting")
    return {step["name"]: words.index(step["status"]) for step in run["steps"]}
