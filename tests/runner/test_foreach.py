"""`foreach`: a small graph for each item of a list (workflow language, section 3.15)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.harness import Children, Seen, alive, pid_in, run, run_and_stop


def summary(seen: Seen, step: str = "each") -> Any:
    """Return what the step printed."""
    text = seen.out(step)
    assert text.endswith("\n")
    return json.loads(text)


def body_log(base: Path, name: str) -> str:
    return (base / "logs" / "foreach" / f"{name}.stdout.log").read_text()


async def test_the_output_is_compact_json_in_the_order_of_the_items(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    output: ALL
    foreach:
      items: [{n: one, ok: true}, {n: two, ok: false}]
      key: ${foreach.item.n}
      collect: {name: "${foreach.key}", said: "${say.output}"}
      steps:
        - id: say
          run: echo "said ${foreach.item.n}"
          output: SAID
        - id: check
          run: ${foreach.item.ok}
          depends: say
"""
    seen = await run(text, tmp_path)
    assert seen.out("each") == (
        '{"summary":{"total":2,"succeeded":1,"failed":1},"items":['
        '{"index":0,"key":"one","status":"succeeded","outputs":{"name":"one","said":"said one"}},'
        '{"index":1,"key":"two","status":"failed","error":"check: exit status 1"}],'
        '"outputs":[{"name":"one","said":"said one"}]}\n'
    )
    node = seen.details()["each"]
    assert node["word"] == "failed"
    assert node["error"] == "one or more foreach item bodies failed"
    assert node["statusDetails"] == [{"label": "one", "status": "succeeded"}, {"label": "two", "status": "failed"}]
    assert "outputVariables" not in node
    assert seen.status is RunStatus.FAILED


async def test_no_items_succeed_with_empty_arrays(tmp_path: Path) -> None:
    text = """
steps:
  - id: each
    output: ALL
    foreach: {items: [], steps: [{run: "false"}]}
  - run: test '${each.output}' = '{"summary":{"total":0,"succeeded":0,"failed":0},"items":[],"outputs":[]}'
    depends: each
"""
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED


async def test_without_collect_items_have_no_outputs(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach: {items: [a], steps: [{run: "true"}]}
"""
    seen = await run(text, tmp_path)
    assert seen.out("each") == (
        '{"summary":{"total":1,"succeeded":1,"failed":0},'
        '"items":[{"index":0,"key":"0","status":"succeeded"}],"outputs":[]}\n'
    )


@pytest.mark.parametrize(
    ("item", "reference", "expected"),
    [
        ('"text"', "${foreach.item}", "text"),
        ("7", "${foreach.item}", "7"),
        ("1.50", "${foreach.item}", "1.5"),
        ("true", "${foreach.item}", "true"),
        ("null", "[${foreach.item}]", "[<nil>]"),
        ('{"a": null}', "[${foreach.item.a}]", "[<nil>]"),
        ('{"a": [1, "x"]}', "${foreach.item}", '{"a":[1,"x"]}'),
        ('{"a": [1, "x"]}', "${foreach.item.a}", '[1,"x"]'),
        ('{"a": 1}', "${foreach.item.b}", "${foreach.item.b}"),
        ('"text"', "${foreach.index}:${foreach.key}", "0:0"),
        ('"text"', "${foreach.other}", "${foreach.other}"),
    ],
)
async def test_references_to_the_item(tmp_path: Path, item: str, reference: str, expected: str) -> None:
    text = f"""
steps:
  - name: each
    foreach:
      items: [{item}]
      steps:
        - name: say
          action: log.write
          with: {{message: '{reference}'}}
"""
    await run(text, tmp_path)
    assert expected in body_log(tmp_path, "each_0_say")


async def test_items_may_come_as_text_of_a_json_array_from_another_step(tmp_path: Path) -> None:
    text = """
steps:
  - id: list
    run: echo '[{"name":"a"},{"name":"b"}]'
    output: LIST
  - name: each
    depends: list
    foreach:
      items: ${list.output}
      as: thing
      key: ${foreach.thing.name}
      steps: [{name: say, run: "echo ${foreach.thing.name} $LIST"}]
"""
    seen = await run(text, tmp_path)
    assert [item["key"] for item in summary(seen)["items"]] == ["a", "b"]
    assert body_log(tmp_path, "each_1_say") == 'b [{"name":"a"},{"name":"b"}]\n'


@pytest.mark.parametrize("items", ["no json", '{"a":1}', "[1,", "${NOWHERE}"])
async def test_items_that_are_no_json_array_fail_the_step(tmp_path: Path, items: str) -> None:
    text = f"""
steps:
  - name: each
    foreach: {{items: '{items}', steps: [{{run: touch {tmp_path}/ran}}]}}
"""
    seen = await run(text, tmp_path)
    assert "foreach.items string must resolve to a JSON array" in seen.details()["each"]["error"]
    assert not (tmp_path / "ran").exists()


async def test_a_thousand_and_one_items_fail_before_any_body(tmp_path: Path) -> None:
    items = json.dumps(list(range(1001)))
    text = f"""
steps:
  - name: each
    foreach: {{items: '{items}', steps: [{{run: touch {tmp_path}/ran}}]}}
"""
    seen = await run(text, tmp_path)
    assert "1001 items" in seen.details()["each"]["error"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "error"), [("${foreach.item.k}", "duplicate foreach item key"), ("${foreach.item.e}", "key is empty")]
)
async def test_bad_keys_fail_before_any_body(tmp_path: Path, key: str, error: str) -> None:
    text = f"""
steps:
  - name: each
    foreach:
      items: [{{k: a, e: x}}, {{k: b, e: ""}}, {{k: a, e: z}}]
      key: {key}
      steps: [{{run: touch {tmp_path}/ran}}]
"""
    seen = await run(text, tmp_path)
    assert error in seen.details()["each"]["error"]
    assert not (tmp_path / "ran").exists()


async def test_bodies_run_concurrently_up_to_the_limit(tmp_path: Path) -> None:
    """Two at a time can meet each other; a third would be seen."""
    text = f"""
steps:
  - name: each
    foreach:
      items: [1, 2, 3, 4]
      max_concurrent: 2
      steps:
        - run: |
            mkdir -p {tmp_path}/now && touch {tmp_path}/now/${{foreach.index}}
            pair=$((${{foreach.index}} / 2 * 2))
            until [ -e {tmp_path}/met.$pair ] || [ "$(ls {tmp_path}/now | wc -l)" -ge 2 ]; do :; done
            touch {tmp_path}/met.$pair
            [ "$(ls {tmp_path}/now | wc -l)" -le 2 ]
            rm {tmp_path}/now/${{foreach.index}}
"""
    seen = await run(text, tmp_path)
    assert summary(seen)["summary"] == {"total": 4, "succeeded": 4, "failed": 0}


async def test_one_at_a_time_goes_in_order(tmp_path: Path) -> None:
    text = f"""
steps:
  - name: each
    foreach:
      items: [c, a, b]
      max_concurrent: 1
      steps: [{{run: "echo ${{foreach.item}} >> {tmp_path}/order"}}]
"""
    await run(text, tmp_path)
    assert (tmp_path / "order").read_text().split() == ["c", "a", "b"]


async def test_body_steps_are_steps_like_any_other(tmp_path: Path) -> None:
    """Retry, repeat, preconditions, continue_on, outputs of both reference systems, env: through the same code."""
    text = f"""
steps:
  - name: each
    foreach:
      items: [x]
      collect: {{v: "${{steps.made.outputs.v}}", path: "${{made.output}}"}}
      steps:
        - id: made
          env: [{{OWN: "o-${{foreach.item}}"}}]
          outputs: [{{name: v}}]
          output: SHOWN
          run: |
            echo "v=$OWN" >> "$DAGU_OUTPUT_FILE"
            echo "$DAG_RUN_STEP_NAME"
        - id: flaky
          run: test -e {tmp_path}/flag || {{ touch {tmp_path}/flag; exit 3; }}
          retry_policy: {{limit: 1, interval_sec: 0}}
        - id: skipped
          preconditions: "false"
          continue_on: skipped
          run: touch {tmp_path}/never
        - id: loop
          run: echo x >> {tmp_path}/loops
          repeat_policy: {{repeat: true, limit: 3, interval_sec: 0}}
        - id: last
          depends: [made, flaky, skipped, loop]
          run: test "${{steps.made.outputs.v}} $SHOWN ${{made.output}}" = "o-x made made"
"""
    seen = await run(text, tmp_path)
    assert summary(seen)["outputs"] == [{"v": "o-x", "path": "made"}]
    assert not (tmp_path / "never").exists()
    assert (tmp_path / "loops").read_text() == "x\n" * 3


async def test_an_accepted_failure_in_a_body_is_a_partial_success(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach:
      items: [x]
      steps: [{name: bad, run: "false", continue_on: failed}, {name: good, run: "true", depends: bad}]
"""
    seen = await run(text, tmp_path)
    assert summary(seen)["items"][0]["status"] == "partially_succeeded"
    assert summary(seen)["summary"] == {"total": 1, "succeeded": 1, "failed": 0}
    assert seen.nodes() == {"each": "partially_succeeded"}


async def test_a_body_step_that_times_out_fails_its_item_only(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach:
      items: [60, 0]
      steps: [{name: nap, run: "sleep ${foreach.item}", timeout_sec: 1}]
"""
    seen = await run(text, tmp_path)
    first, second = summary(seen)["items"]
    assert "step timed out after" in first["error"]
    assert second["status"] == "succeeded"


async def test_the_environment_of_the_foreach_step_reaches_its_body(tmp_path: Path) -> None:
    text = """
env: [{WHO: root, WHERE: root}]
steps:
  - name: each
    env: [{WHO: outer}]
    foreach:
      items: [x]
      steps: [{name: say, env: [{WHERE: "inner of $WHO"}], run: 'echo "$WHO $WHERE"'}]
"""
    await run(text, tmp_path)
    assert body_log(tmp_path, "each_0_say") == "outer inner of outer\n"


async def test_an_unresolved_strict_reference_in_collect_fails_the_item(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach:
      items: [x]
      collect: {a: "${steps.nosuch.outputs.v}", b: "plain ${NOPE}"}
      steps: [{run: "true"}]
"""
    seen = await run(text, tmp_path)
    [item] = summary(seen)["items"]
    assert item["status"] == "failed"
    assert "${steps.nosuch.outputs.v}" in item["error"]


async def test_an_unresolved_plain_name_in_collect_stays_as_text(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach: {items: [x], collect: {b: "plain ${NOPE}"}, steps: [{run: "true"}]}
"""
    seen = await run(text, tmp_path)
    assert summary(seen)["outputs"] == [{"b": "plain ${NOPE}"}]


async def test_a_retry_of_the_step_repeats_every_item(tmp_path: Path) -> None:
    text = f"""
steps:
  - name: each
    retry_policy: {{limit: 1, interval_sec: 0}}
    foreach:
      items: [a, b]
      steps: [{{name: w, run: "echo ${{foreach.item}} >> {tmp_path}/ran; test $(wc -l < {tmp_path}/ran) -gt 2"}}]
"""
    seen = await run(text, tmp_path)
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "a", "b", "b"]
    assert seen.details()["each"]["retryCount"] == 1
    assert seen.status is RunStatus.SUCCEEDED


async def test_a_stop_ends_all_bodies_and_starts_no_more(tmp_path: Path) -> None:
    text = f"""
steps:
  - name: each
    foreach:
      items: [1, 2, 3]
      max_concurrent: 2
      steps:
        - {{name: w, run: "touch {tmp_path}/${{foreach.item}}; echo ready; sleep 60"}}
"""
    seen = await run_and_stop(text, tmp_path, step="foreach/each_1_w")
    assert seen.nodes() == {"each": "aborted"}
    assert seen.status is RunStatus.ABORTED
    assert [detail["status"] for detail in seen.details()["each"]["statusDetails"]] == ["aborted"] * 3
    assert not (tmp_path / "3").exists()


async def test_a_timeout_of_the_step_ends_all_bodies(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    timeout_sec: 1
    foreach: {items: [1, 2], steps: [{run: "sleep 60"}]}
"""
    seen = await run(text, tmp_path)
    node = seen.details()["each"]
    assert node["word"] == "failed"
    assert node["error"].startswith("step timed out after")


async def test_stopping_a_step_of_one_item_leaves_the_others_alone(tmp_path: Path) -> None:
    """Item 1 and item 10 share a prefix; a timeout of one must not kill the other."""
    items = list(range(11))
    text = f"""
steps:
  - name: each
    foreach:
      items: {items}
      max_concurrent: 11
      steps:
        - {{name: a, run: "if [ ${{foreach.item}} = 1 ]; then sleep 60; fi; sleep 1.2", timeout_sec: 1,
            preconditions: [{{condition: "${{foreach.item}}", expected: "1"}}], continue_on: {{skipped: true}}}}
        - {{name: b, run: "if [ ${{foreach.item}} = 10 ]; then sleep 1.3; fi"}}
"""
    seen = await run(text, tmp_path)
    assert [item["key"] for item in summary(seen)["items"] if item["status"] == "failed"] == ["1"]


async def test_sub_dags_of_bodies_are_runs_of_their_own_and_listed_at_the_node(tmp_path: Path) -> None:
    text = """
steps:
  - name: each
    foreach:
      items: [1, 2]
      steps: [{name: call, action: dag.run, with: {dag: kid}}]
---
name: kid
steps: [{run: "true"}]
"""
    children = Children()
    seen = await run(text, tmp_path, children=children)
    ids = {request.run_id for request in children.requests}
    assert len(ids) == 2
    assert {child["dagRunId"] for child in seen.details()["each"]["children"]} == ids


async def test_a_handler_may_be_a_foreach(tmp_path: Path) -> None:
    text = f"""
handler_on:
  exit:
    foreach: {{items: [a], steps: [{{run: 'echo "$DAG_RUN_STATUS" > {tmp_path}/${{foreach.item}}'}}]}}
steps: [{{name: a, run: "echo"}}]
"""
    seen = await run(text, tmp_path)
    assert (tmp_path / "a").read_text() == "succeeded\n"
    assert seen.nodes()["onExit"] == "succeeded"


async def test_secrets_stay_out_of_keys_errors_and_output(tmp_path: Path) -> None:
    text = """
secrets: [{name: TOKEN, provider: env, key: TOKEN}]
steps:
  - name: each
    foreach:
      items: ["${TOKEN}"]
      key: k-${foreach.item}
      collect: {t: "${foreach.item}"}
      steps: [{name: w, run: "echo ${foreach.item}"}]
"""
    seen = await run(text, tmp_path, host_env={"PATH": "/bin:/usr/bin", "TOKEN": "sesame-open"})
    assert seen.status is RunStatus.SUCCEEDED
    assert "sesame-open" not in seen.final_text
    assert all(b"sesame-open" not in data for data in seen.logs.values())
    assert body_log(tmp_path, "each_0_w") == "*******\n"
    assert all("sesame-open" not in json.dumps(line) for line in seen.lines)


async def test_a_cycle_in_a_body_fails_the_run_before_any_step(tmp_path: Path) -> None:
    text = f"""
steps:
  - {{name: first, run: touch {tmp_path}/ran}}
  - name: each
    foreach: {{items: [], steps: [{{name: a, run: "true", depends: b}}, {{name: b, run: "true", depends: a}}]}}
"""
    seen = await run(text, tmp_path)
    assert "cyclic plan detected in the body of each" in seen.final["error"]
    assert not (tmp_path / "ran").exists()


async def test_cancelling_the_run_kills_every_body(tmp_path: Path) -> None:
    text = f"""
steps:
  - name: each
    foreach:
      items: [1, 2]
      steps: [{{name: w, run: "echo $$ > {tmp_path}/${{foreach.item}}; echo ready; sleep 60"}}]
"""
    seen, ready = Seen(), [asyncio.Event(), asyncio.Event()]
    for index, event in enumerate(ready):
        seen.when(f"foreach/each_{index}_w", b"ready", event.set)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run(text, tmp_path, seen=seen))
        for event in ready:
            await event.wait()
        task.cancel()
    assert not alive(pid_in(tmp_path / "1"))
    assert not alive(pid_in(tmp_path / "2"))
