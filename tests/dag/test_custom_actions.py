"""The author's own actions: expanded where they are called, checked against their schema."""

from __future__ import annotations

import time

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Definition
from secure_dagu.errors import DefinitionError

GREET = """\
actions:
  greet.nicely:
    description: Say hello
    input_schema:
      type: object
      additionalProperties: false
      required: [who]
      properties:
        who: {type: string}
        times: {type: integer, default: 2}
        tags: {type: array, default: [a, b]}
    output_schema: {type: object}
    template:
      run: echo {{ .input.who }} {{ .input.times }} '{{ json .input.tags }}'
      env: [A=1]
      preconditions: [base]
      timeout_sec: 3
      retry_policy: {limit: {$input: times}, interval_sec: 0}
"""


def load(call: str, definition: str = GREET, **options: str) -> Definition:
    return load_definition(f"{definition}steps:\n  - {call}\n", file="a.yaml", **options)  # type: ignore[arg-type]


def problems(call: str, definition: str = GREET, **options: str) -> str:
    with pytest.raises(DefinitionError) as caught:
        load(call, definition, **options)
    return caught.value.why


def test_a_call_becomes_the_step_of_the_template() -> None:
    step = load(
        "{action: greet.nicely, with: {who: bob}, env: [B=2], preconditions: [own], timeout_sec: 9}"
    ).main.steps[0]
    assert (step.name, step.kind, step.commands) == ("greet.nicely_1", "command", ("""echo bob 2 '["a","b"]'""",))
    assert [entry.name for entry in step.env] == ["A", "B"]
    assert [item.condition for item in step.preconditions] == ["base", "own"]
    assert step.timeout_s == 9.0
    assert step.retry is not None
    assert step.retry.limit == "2"
    assert step.output_schema == {"type": "object"}


def test_a_typed_value_is_inserted_as_it_is() -> None:
    own = (
        "actions:\n  post:\n    input_schema: {type: object}\n    template:\n"
        "      action: http.request\n      with: {method: POST, url: u, headers: {$input: h}, body: {$input: deep.l}}\n"
    )
    step = load("{action: post, with: {h: {a: 1}, deep: {l: [true, ~, 1.5, 'x: y']}}}", own).main.steps[0]
    assert step.inputs == {"method": "POST", "url": "u", "headers": {"a": 1}, "body": [True, None, 1.5, "x: y"]}


def test_an_own_action_may_call_another() -> None:
    own = GREET + (
        "  twice:\n    input_schema: {type: object}\n    template:\n"
        "      {action: greet.nicely, with: {who: '{{ .input.w }}!', times: 2}}\n"
    )
    assert load("{action: twice, with: {w: eve}}", own).main.steps[0].commands[0].startswith("echo eve! 2")


def test_a_reference_fits_any_type_because_only_the_run_knows_its_value() -> None:
    step = load("{action: greet.nicely, with: {who: x, times: '${params.n}'}}").main.steps[0]
    assert step.retry is not None
    assert step.retry.limit == "${params.n}"


def test_actions_are_inherited_from_the_base_configuration() -> None:
    assert load("{action: greet.nicely, with: {who: x}}", "", base_config=GREET).main.steps[0].kind == "command"
    assert "base configuration has an action" in problems("{run: x}", GREET, base_config=GREET)


def test_a_step_type_is_an_action_of_the_old_kind() -> None:
    own = (
        "step_types:\n  hi: {type: jq, input_schema: {type: object}, "
        "template: {command: .a, script: '{{ json .input.d }}'}}\n"
    )
    loaded = load("{type: hi, config: {d: {a: 1}}}", own)
    assert loaded.main.steps[0].inputs == {"filter": ".a", "data": '{"a":1}'}
    assert loaded.main.steps[0].name == "hi_1"
    assert "step_types is deprecated; use `actions`" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        ("{action: greet.nicely}", ["steps[0].with", "'who' is a required property"]),
        ("{action: greet.nicely, with: {who: a, more: 1}}", ["more", "unexpected"]),
        ("{action: greet.nicely, with: {who: a, times: many}}", ["times", "input_schema"]),
        ("{action: greet.nicely, with: {who: a}, script: x}", ["script", "where the custom action"]),
        ("{action: greet.nicely, with: {who: a}, container: c}", ["container"]),
        ("{action: greet.nicely, with: {who: a}, parallel: [1]}", ["parallel"]),
        ("{action: greet.nicely, with: {who: a}, working_dir: /}", ["working_dir"]),
        ("{action: greet.nicly, with: {who: a}}", ["unknown action", 'did you mean "greet.nicely"']),
    ],
)
def test_a_wrong_call_is_refused(call: str, fragments: list[str]) -> None:
    why = problems(call)
    assert [fragment for fragment in fragments if fragment not in why] == []


@pytest.mark.parametrize(
    ("definition", "fragments"),
    [
        ("noop: {input_schema: {type: object}, template: {run: x}}", ["actions.noop", "collides"]),
        ("1a: {input_schema: {type: object}, template: {run: x}}", ["a name is words"]),
        ("a: {template: {run: x}}", ["input_schema is required"]),
        ("a: {input_schema: {type: object}}", ["template is required"]),
        ("a: {input_schema: {type: object}, template: {}}", ["exactly one of run and action"]),
        ("a: {input_schema: {type: array}, template: {run: x}}", ["type must be object"]),
        ("a: {input_schema: {type: object, required: 5}, template: {run: x}}", ["no JSON Schema"]),
        ("a: {input_schema: {type: object}, templates: {run: x}}", ["invalid keys", "templates"]),
    ],
)
def test_a_wrong_definition_is_refused(definition: str, fragments: list[str]) -> None:
    why = problems("{run: x}", f"actions:\n  {definition}\n")
    assert [fragment for fragment in fragments if fragment not in why] == []


@pytest.mark.parametrize("template", ["{run: 'echo {{ .input.y }}'}", "{run: x, description: {$input: y.z}}"])
def test_a_missing_input_is_an_error(template: str) -> None:
    assert "y" in problems("{action: a}", f"actions: {{a: {{input_schema: {{type: object}}, template: {template}}}}}\n")


def test_actions_that_call_each_other_without_end_are_refused_at_once() -> None:
    own = (
        "actions:\n  a: {input_schema: {type: object}, template: {action: b}}\n"
        "  b: {input_schema: {type: object}, template: {action: a}}\n"
    )
    started = time.process_time()
    assert "8 deep" in problems("{action: a}", own)
    assert time.process_time() - started < 5


def test_expansions_of_a_document_have_a_limit() -> None:
    big = "x" * 200_000
    own = f"actions:\n  a: {{input_schema: {{type: object}}, template: {{run: '{{{{ .input.t }}}}{big}'}}}}\n"
    calls = "\n".join(["{action: a, with: {t: 1}}", *["  - {action: a, with: {t: 1}}"] * 300])
    assert "grows too large" in problems(calls, own)
