"""When a failed run is retried by itself (`retry_policy` of a DAG; workflow language, section 3.9). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from secure_dagu.dag.model import DagRetry
from secure_dagu.run.model import RunStatus, TriggerType
from secure_dagu.run.retry import Policy


def due_at(document: Mapping[str, Any], policy: DagRetry | None) -> datetime | None:
    """Return when a run is retried next; None: it is not.

    Args:
        document: its newest status document.
        policy: that of the definition that it was started with.
    """
    if policy is None or document.get("status") != RunStatus.FAILED:
        return None
    if not is_left(document, policy):
        return None
    try:
        ended = datetime.fromisoformat(str(document.get("finishedAt"))).astimezone(UTC)
    except ValueError:
        return None
    waits = Policy(interval_s=policy.interval_s, backoff=policy.backoff, max_interval_s=policy.max_interval_s)
    return ended + timedelta(seconds=waits.pause_s(retries_of(document)))


def retries_of(document: Mapping[str, Any]) -> int:
    """Return how often a run was retried by itself."""
    count = document.get("autoRetryCount")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0


def limit_of(document: Mapping[str, Any], policy: DagRetry | None) -> int:
    """Return how often a run is retried by itself at most: what its document says goes before its definition."""
    told = document.get("autoRetryLimit")
    if isinstance(told, int) and not isinstance(told, bool):
        return told
    return policy.limit if policy is not None else 0


def is_left(document: Mapping[str, Any], policy: DagRetry | None) -> bool:
    """Tell whether a run is retried by itself once more, should it fail."""
    return retries_of(document) < limit_of(document, policy)


def is_pending(document: Mapping[str, Any]) -> bool:
    """Tell whether a run has failed and is retried by itself, by what its document says alone."""
    return document.get("status") == RunStatus.FAILED and is_left(document, None)


def told_at_start(trigger: TriggerType, *, is_retried: bool = True) -> str:
    """Return the previous status with which a run is dispatched anew: no field of a task says what started it.

    Args:
        trigger: what did. Peers that do not look for it report `unknown` (protocol, section 4.5).
        is_retried: whether somebody keeps the definition, and retries the run by itself if it asks for that.
    """
    told = {"status": int(RunStatus.NOT_STARTED), "triggerType": int(trigger)}
    return json.dumps(told if is_retried else {**told, "autoRetryLimit": 0})
