"""What a run that is retried by itself does at each try: nobody hears of a failure before the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.dispatch.model import Operation
from secure_dagu.dispatch.retrying import due_at, is_pending, told_at_start
from secure_dagu.run.model import DagRunRef, RunStatus, TriggerType
from tests.runner.harness import RUN, Seen, run
from tests.runner.mailserver import mail_server

TEXT = """
retry_policy: {limit: 1, interval_sec: 60}
mail_on: {failure: true}
error_mail: {from: a@x.test, to: b@x.test}
smtp: {host: 127.0.0.1, port: %d}
handler_on: {failure: {run: "true"}, exit: {run: "true"}}
steps: [{name: a, run: exit 3}]
"""


async def tried(base: Path, **changes: Any) -> tuple[Seen, int]:
    """Run it; return what was seen, and how many mails were sent."""
    async with mail_server() as server:
        seen = await run(TEXT % server.port, base, **changes)
        return seen, len(server.mails)


def again(document: dict[str, Any]) -> dict[str, Any]:
    """Return how the scheduler has a failed run tried again."""
    counted = {**document, "autoRetryCount": document.get("autoRetryCount", 0) + 1}
    return {"operation": Operation.RETRY, "previous_status": json.dumps(counted), "attempt": "a2"}


async def test_a_failure_is_told_at_the_last_try_only(tmp_path: Path) -> None:
    first, mails = await tried(tmp_path)
    assert (first.status, first.nodes(), mails) == (RunStatus.FAILED, {"a": "failed", "onExit": "succeeded"}, 0)
    assert is_pending(first.final)
    last, mails = await tried(tmp_path, **again(first.final))
    assert last.nodes() == {"a": "failed", "onFailure": "succeeded", "onExit": "succeeded"}
    assert (mails, is_pending(last.final)) == (1, False)
    assert (last.final["autoRetryCount"], last.final["autoRetryLimit"]) == (1, 1)


async def test_what_nobody_retries_tells_at_once(tmp_path: Path) -> None:
    told = told_at_start(TriggerType.MANUAL, is_retried=False)
    seen, mails = await tried(tmp_path, previous_status=told)
    assert ("onFailure" in seen.nodes(), mails, is_pending(seen.final)) == (True, 1, False)
    assert due_at(seen.final, None) is None


async def test_a_child_is_never_retried_by_itself(tmp_path: Path) -> None:
    seen, mails = await tried(tmp_path, root=DagRunRef("top", "run-0"), parent=DagRunRef("top", "run-0"))
    assert ("onFailure" in seen.nodes(), mails, is_pending(seen.final)) == (True, 1, False)


@pytest.mark.parametrize("trigger", [TriggerType.SCHEDULER, TriggerType.CATCHUP, TriggerType.MANUAL])
async def test_a_worker_knows_what_started_a_run(tmp_path: Path, trigger: TriggerType) -> None:
    text = "steps: [{name: a, run: 'echo ${context.trigger.type}'}]"
    seen = await run(text, tmp_path, previous_status=told_at_start(trigger))
    assert (seen.out("a").strip(), seen.final["triggerType"]) == (trigger.name.lower(), int(trigger))


@pytest.mark.parametrize("told", ["", "{}", '{"triggerType": 99}', '{"triggerType": "x"}', "[", '{"triggerType": []}'])
async def test_a_dispatcher_that_tells_nothing_or_nonsense_changes_nothing(tmp_path: Path, told: str) -> None:
    seen = await run("steps: [{name: a, run: 'echo ${context.trigger.type}'}]", tmp_path, previous_status=told)
    assert (seen.out("a").strip(), RUN.run_id) == ("unknown", seen.final["dagRunId"])
