"""Section 2.5 and table A.3: declared parameters, caller input, coercion, publication."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag
from secure_dagu.dag.params import MAX_INPUT_BYTES, Params, bind_params, parse_input, split_words
from secure_dagu.errors import DefinitionError

DECLARED = """
params:
  - {name: zeta, default: z0}
  - {name: alpha, type: integer, default: 5}
  - {name: flag, type: boolean, default: true}
  - {name: noval, type: string}
steps: [{run: x}]
"""


def dag(text: str) -> Dag:
    return load_definition(text).main


def bound(text: str, caller: str) -> Params:
    return bind_params(dag(text), caller).finish()


@pytest.mark.parametrize(
    ("caller", "json", "zeta", "alpha"),
    [
        ("", '{"alpha":"5","flag":"true","zeta":"z0"}', "z0", "5"),
        ("q1 7", '{"alpha":"7","flag":"true","zeta":"q1"}', "q1", "7"),
        ("q1 alpha=7", '{"alpha":"7","flag":"true","zeta":"q1"}', "q1", "7"),
        ('{"zeta":"j","alpha":3,"flag":false}', '{"zeta":"j","alpha":3,"flag":false}', "j", "3"),
        ('["x",4]', '["x",4]', "x", "4"),
        ('zeta="a b" alpha=8', '{"alpha":"8","flag":"true","zeta":"a b"}', "a b", "8"),
        ("zeta=a=b", '{"alpha":"5","flag":"true","zeta":"a=b"}', "a=b", "5"),
    ],
)
def test_caller_input_binds_as_the_reference_says(caller: str, json: str, zeta: str, alpha: str) -> None:
    params = bound(DECLARED, caller)
    assert (params.json, params.named["zeta"], params.named["alpha"]) == (json, zeta, alpha)
    assert "noval" not in params.env


@pytest.mark.parametrize(
    ("caller", "message"),
    [
        ("alpha=abc", 'alpha: cannot coerce "abc" to integer'),
        ("extra=1", 'unknown parameter(s): "extra"; accepted parameters are: alpha, flag, noval, zeta'),
        ("1 2 true n 5", "too many positional params: expected at most 4, got 5"),
        ("flag=maybe", 'flag: cannot coerce "maybe" to boolean'),
    ],
)
def test_input_that_does_not_fit_is_refused(caller: str, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        bound(DECLARED, caller)
    assert caught.value.what == message


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("type: integer, minimum: 2", "1", "must be at least 2"),
        ("type: number, maximum: 1.5", "1.6", "must be at most 1.5"),
        ("enum: [a, b]", "c", "must be one of a, b"),
        ("min_length: 2", "x", "must have at least 2 characters"),
        ("max_length: 2", "xyz", "must have at most 2 characters"),
        ("pattern: '^[a-z]+$'", "A", "must match ^[a-z]+$"),
    ],
)
def test_a_value_out_of_bounds_is_refused(field: str, value: str, why: str) -> None:
    text = f"params: [{{name: p, {field}}}]\nsteps: [{{run: x}}]"
    with pytest.raises(DefinitionError) as caught:
        bound(text, f"p={value}")
    assert caught.value.why == why


def test_the_text_form_counts_named_words_as_positions() -> None:
    params = bound('params: "a1 KEY=v3 \\"d 4\\""\nsteps: [{run: x}]', "")
    assert dict(params.env) == {"1": "a1", "KEY": "v3", "3": "d 4"}
    assert dict(params.named) == {"KEY": "v3"}


def test_a_dag_without_params_accepts_everything() -> None:
    params = bound("steps: [{run: x}]", "x=1 y")
    assert dict(params.env) == {"x": "1", "2": "y"}
    assert params.json == '{"2":"y","x":"1"}'
    assert bound("steps: [{run: x}]", "").json == ""


def test_webhook_values_are_always_accepted() -> None:
    assert bound(DECLARED, "WEBHOOK_PAYLOAD={}").env["WEBHOOK_PAYLOAD"] == "{}"


def test_caller_values_are_literal() -> None:
    assert bound(DECLARED, "zeta=${env.HOME}`id`").named["zeta"] == "${env.HOME}`id`"


def test_a_required_parameter_without_a_value_is_named() -> None:
    text = "params: [{name: must, required: true}]\nsteps: [{run: x}]"
    with pytest.raises(DefinitionError, match="missing required parameters: must"):
        bound(text, "")
    assert bound(text, "must=1").named == {"must": "1"}


def test_eval_waits_for_the_runner_and_sees_only_earlier_parameters() -> None:
    text = """
params:
  - {name: a, default: "1"}
  - {name: b, eval: "$(echo ${params.a})"}
  - {name: c, default: "3"}
  - {name: d, eval: "$b"}
steps: [{run: x}]
"""
    binding = bind_params(dag(text), "")
    assert [item.name for item in binding.pending] == ["b", "d"]
    assert dict(binding.params().env) == {"a": "1"}
    binding = binding.supply(binding.pending[0], "B")
    assert dict(binding.params().env) == {"a": "1", "b": "B", "c": "3"}
    assert list(binding.supply(binding.pending[0], "D").finish().env) == ["a", "b", "c", "d"]


def test_a_caller_value_makes_eval_unnecessary() -> None:
    text = "params: [{name: a, eval: '$(id)'}]\nsteps: [{run: x}]"
    assert bind_params(dag(text), "a=1").pending == ()


def test_a_failed_eval_falls_back_to_the_default_or_ends_the_run() -> None:
    text = "params: [{name: a, eval: '$(id)', default: d}, {name: b, eval: '$(id)'}]\nsteps: [{run: x}]"
    binding = bind_params(dag(text), "")
    binding = binding.fail(binding.pending[0], "exit status 1")
    assert binding.values["a"] == "d"
    with pytest.raises(DefinitionError, match="params: b: eval failed"):
        binding.fail(binding.pending[0], "exit status 1")


def test_every_declaration_form_is_read() -> None:
    assert bound("params: {A: x, B: ''}\nsteps: []", "").env == {"A": "x", "B": ""}
    assert bound("params: [A=x, {B: 1.0}, pos]\nsteps: []", "").env == {"A": "x", "B": "1", "3": "pos"}
    schema = "params: {schema: {type: object, properties: {n: {type: integer, minLength: 1}}}, values: {n: 4}}"
    assert bound(schema + "\nsteps: []", "").env == {"n": "4"}
    inline = "params: {type: object, properties: {n: {type: integer}}, required: [n]}"
    with pytest.raises(DefinitionError, match="missing required"):
        bound(inline + "\nsteps: []", "")


def test_input_past_the_limit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="too long"):
        parse_input("x" * (MAX_INPUT_BYTES + 1))


@given(st.text(max_size=50))
def test_splitting_arbitrary_text_never_raises(text: str) -> None:
    split_words(text)
    parse_input(text)
