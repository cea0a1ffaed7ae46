"""Statuses as words and numbers, and the key of an attempt."""

from __future__ import annotations

import pytest

from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus, StepStatus, attempt_key


def test_an_attempt_key_is_that_of_the_protocol() -> None:
    """Protocol, section 4.6: a key that a real run had."""
    run = DagRunRef("rich", "e2e-1795333807")
    assert attempt_key(root=run, run=run, attempt_id=AttemptId("80e53d")) == "b8768c4f25e18b2f:80e53d"


def test_a_run_is_named_by_its_dag_and_its_id() -> None:
    assert str(DagRunRef("demo", "r1")) == "demo/r1"


@pytest.mark.parametrize(
    ("status", "word", "title"),
    [
        (RunStatus.NOT_STARTED, "not_started", "Not Started"),
        (RunStatus.PARTIALLY_SUCCEEDED, "partially_succeeded", "Partially Succeeded"),
        (RunStatus.ABORTED, "aborted", "Aborted"),
    ],
)
def test_a_run_status_has_a_word_and_a_title(status: RunStatus, word: str, title: str) -> None:
    assert (status.word, status.title) == (word, title)


def test_which_statuses_end_a_run_and_a_step() -> None:
    assert {status for status in RunStatus if not status.is_terminal} == {0, 1, 5, 7}
    assert {status for status in RunStatus if status.is_success} == {4, 6}
    assert {status for status in StepStatus if not status.is_terminal} == {0, 1, 7, 9}
