"""What the pages say of definitions: forms, places, times, attributes, histories."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag
from secure_dagu.dispatch.operating import Outlook, Placement, Waiting
from secure_dagu.web.pages import workflow_views as views
from secure_dagu.web.pages.starters import STARTERS, Starter

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def dag(text: str) -> Dag:
    return load_definition(text + "\nsteps: [{id: a, run: echo a}]\n", name="d").main


@pytest.mark.parametrize("starter", STARTERS, ids=lambda starter: starter.key)
def test_every_starter_loads(starter: Starter) -> None:
    load_definition(starter.text, name="d", strict=True)


def test_starters_show_what_they_say() -> None:
    by_key = {starter.key: load_definition(starter.text, name="d").main for starter in STARTERS}
    assert by_key["schedule"].schedule
    assert by_key["schedule"].steps[0].retry
    assert by_key["params"].params
    assert by_key["worker"].worker_selector
    assert any(step.approval for step in by_key["approval"].steps)
    assert len(by_key["graph"].steps[-1].depends) == 2


def test_a_typed_form() -> None:
    form = views.start_form(
        dag(
            """
params:
  - {name: where, enum: [staging, production], default: staging}
  - {name: count, type: integer, default: 2, minimum: 1, maximum: 10}
  - {name: ratio, type: number}
  - {name: loud, type: boolean, default: true}
  - {name: word, required: true, pattern: "^v", min_length: 2, max_length: 5, description: Which}
"""
        )
    )
    shown = {item.name: item for item in form.fields}
    assert {name: item.kind for name, item in shown.items()} == {
        "where": "choice", "count": "number", "ratio": "number", "loud": "boolean", "word": "text",
    }  # fmt: skip
    assert shown["where"].choices == ("staging", "production")
    assert (shown["count"].minimum, shown["count"].maximum, shown["count"].is_whole) == ("1", "10", True)
    assert (shown["ratio"].has_default, shown["ratio"].is_whole) == (False, False)
    assert shown["loud"].default == "true"
    assert shown["word"].is_required
    assert shown["word"].hint == "Which. at least 2 characters. must match ^v"
    assert shown["word"].max_length == 5


def test_a_list_is_asked_for_as_json() -> None:
    form = views.start_form(dag("params: {schema: {type: object, properties: {rows: {type: array}}}}"))
    assert [(item.name, item.kind, item.hint) for item in form.fields] == [("rows", "text", "a list, as JSON")]


def test_parameters_without_names_are_one_line() -> None:
    form = views.start_form(dag("params: a b=2"))
    assert form.fields == ()
    assert "b=2" in form.raw


def test_what_may_not_be_changed_is_fixed() -> None:
    form = views.start_form(dag("run_config: {disable_param_edit: true, disable_run_id_edit: true}"))
    assert (form.is_fixed, form.may_name_run) == (True, False)
    assert (views.start_form(dag("")).is_fixed, views.start_form(dag("")).may_name_run) == (False, True)


def test_where_it_runs() -> None:
    assert views.where(Outlook(placement=Placement.LOCAL)) == views.Where(told="On this host.", is_good=True)
    good = views.where(Outlook(placement=Placement.WORKERS, selector={"gpu": "true", "a": "b"}, matching_workers=1))
    assert (good.told, good.is_good) == ("On a worker with a=b, gpu=true. 1 healthy worker fits now.", True)


@pytest.mark.parametrize("reason", list(Waiting))
def test_every_reason_to_wait_is_said_with_what_to_do(reason: Waiting) -> None:
    told = views.where(Outlook(placement=Placement.WORKERS, waits_for=reason))
    assert not told.is_good
    assert told.warning.startswith("It would wait: ")
    assert reason.value not in told.warning
    assert told.next_step


def test_problems_have_their_places() -> None:
    assert views.problems(["d.yaml:3:7: no: such key", "nothing works", "a b:1:2: text"]) == [
        views.Problem(line=3, column=7, text="no: such key"),
        views.Problem(line=0, column=0, text="nothing works"),
        views.Problem(line=0, column=0, text="a b:1:2: text"),
    ]


def test_occurrences_are_the_next_of_all_kinds_in_order() -> None:
    told = dag('schedule: {start: "0 13 * * *", stop: ["30 13 * * *", "30 14 * * *"]}')
    found = views.occurrences(told, NOW, UTC, most=4)
    assert [(one.timing.kind, one.at.hour, one.at.minute) for one in found] == [
        ("start", 13, 0), ("stop", 13, 30), ("stop", 14, 30), ("start", 13, 0),
    ]  # fmt: skip
    assert views.occurrences(dag(""), NOW, UTC, most=4) == []


def test_attributes_say_what_is_set_and_nothing_of_values_that_may_be_secret() -> None:
    told = dag("env: [{TOKEN: hidden-value}]\nqueue: q\nschedule: '0 1 * * *'\nworker_selector: {gpu: 'true'}")
    found = {one.name: one.values for one in views.attributes(told)}
    assert found["Environment"] == ("TOKEN",)
    assert found["Queue"] == ("q",)
    assert found["Runs on"] == ("gpu=true",)
    assert found["Schedule"] == ("0 1 * * *",)
    assert "Timeout" not in found
    assert "hidden-value" not in str(found)


def test_rows_of_steps_are_in_the_order_of_the_graph() -> None:
    main = load_definition(
        "steps: [{id: a, run: echo a}, {id: b, run: echo b, depends: a, retry_policy: {limit: 2, interval_sec: 1}}]\n"
        "handler_on: {exit: {run: echo bye}}",
        name="d",
    ).main
    assert [(row.number, row.name, row.does) for row in views.step_rows(main)] == [
        ("1", "a", "echo a"), ("2", "b", "echo b"), ("·", "onExit", "echo bye"),
    ]  # fmt: skip
    assert views.step_rows(main)[1].facts == ("after a", "up to 2 retries")


def test_a_history_is_oldest_first_and_empty_where_a_run_had_no_such_step() -> None:
    grid = [{"name": "a", "history": [4, 2]}, {"name": "b", "history": [4, 0]}]
    rows = views.history_rows(grid, {4: "succeeded", 2: "failed", 0: "not_started"}, [frozenset("ab"), frozenset("a")])
    assert [(row.name, [cell.status for cell in row.cells]) for row in rows] == [
        ("a", ["failed", "succeeded"]), ("b", ["", "succeeded"]),
    ]  # fmt: skip
