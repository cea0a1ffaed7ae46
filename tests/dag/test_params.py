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
        ('["x",{"alpha":4}]', '["x",{"alpha":4}]', "x", "4"),
        ('[{"alpha":4},"x"]', '[{"alpha":4},"x"]', "x", "4"),
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


# ------------------------------------------------------------------------------------------------------ JSON Schema

SCHEMA = """{"type": "object", "required": ["env"], "properties": {
  "env": {"type": "string", "enum": ["dev", "prod"]},
  "count": {"type": "integer", "minimum": 1, "default": 2, "title": "how many"},
  "step": {"type": "integer", "multipleOf": 5},
  "mail": {"type": "string", "minLength": 3, "not": {"const": "root"}},
  "tags": {"type": "array", "items": {"type": "string"}, "default": ["a"]}}}"""


def from_schema(caller: str, *, values: str = "{}", schema: str | None = None) -> Params:
    text = f"params: {{schema: params.json, values: {values}}}\nsteps: [{{run: x}}]"
    text = text if schema is None else f"params: {schema}\nsteps: [{{run: x}}]"
    asked: list[str] = []

    def read_schema(name: str) -> str:
        asked.append(name)
        return SCHEMA

    loaded = load_definition(text, read_schema=read_schema).main
    assert asked == (["params.json"] if schema is None else [])
    return bind_params(loaded, caller).finish()


@pytest.mark.parametrize(
    ("caller", "env"),
    [
        ("env=dev", {"env": "dev", "count": "2", "tags": '["a"]'}),
        (
            "env=prod count=3 step=10 mail=joe",
            {"env": "prod", "count": "3", "step": "10", "mail": "joe", "tags": '["a"]'},
        ),
        ('{"env": "dev", "tags": ["x", "y"]}', {"env": "dev", "count": "2", "tags": '["x","y"]'}),
    ],
)
def test_a_schema_declares_parameters_wherever_it_stands(caller: str, env: dict[str, str]) -> None:
    for params in (
        from_schema(caller),
        from_schema(caller, schema=SCHEMA.replace("\n", " ")),
        from_schema(caller, schema=f"{{schema: {SCHEMA}}}".replace("\n", " ")),
    ):
        assert dict(params.env) == env


def test_what_is_required_is_missed_before_an_eval_runs_unless_the_eval_gives_it() -> None:
    declared = dag("params: [{name: a, required: true}, {name: b, required: true, eval: $(date)}]\nsteps: []")
    with pytest.raises(DefinitionError, match="missing required parameters: a:"):
        bind_params(declared, "").check_required()
    bind_params(declared, "a=1").check_required()


def test_values_of_a_schema_are_defaults() -> None:
    assert from_schema("", values="{env: prod, count: 7}").named == {"env": "prod", "count": "7", "tags": '["a"]'}


@pytest.mark.parametrize(
    ("caller", "said"),
    [
        ("count=3", "missing required parameters: env"),
        ("env=test", "must be one of dev, prod"),
        ("env=dev count=0", "must be at least 1"),
        ("env=dev step=7", "multiple of 5"),
        ("env=dev mail=root", "mail"),
        ("env=dev mail=x", "at least 3 characters"),
        ("env=dev tags=x", 'tags: cannot coerce "x" to array'),
        ('{"env": "dev", "tags": [1]}', "1 is not of type 'string'"),
        ("dev", "positional params are not accepted"),
        ("env=dev more=1", 'unknown parameter(s): "more"; accepted parameters are: count, env, mail, step, tags'),
    ],
)
def test_input_that_the_schema_forbids_is_refused(caller: str, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        from_schema(caller)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ("{schema: missing.json}", 'params: "missing.json": the schema file cannot be read'),
        ("{schema: https://example.com/s.json}", "schemas are not fetched from the network"),
        ("{schema: {type: object}}", "needs properties"),
        ("{schema: [1]}", "expected a file, or a schema"),
        ("{type: object, properties: {a: {$ref: other.json}}}", "`$ref` is not supported"),
        ("{type: object, properties: {a: {type: integer, default: x}}}", 'cannot coerce "x" to integer'),
        ("{type: object, properties: {a-b: {type: string}}}", "params"),
        ("{schema: {type: object, properties: {a: {}}}, values: {b: 1}}", '"b" is not a property'),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(params: str, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        load_definition(f"params: {params}\nsteps: [{{run: x}}]")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["[", "- 1", "a: b\n---\nc: d", ""])
def test_a_schema_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match=r"s\.json"):
        load_definition("params: {schema: s.json}\nsteps: [{run: x}]", read_schema=lambda _: text)


# ------------------------------------------------------------------------------------------------- declaration forms


@pytest.mark.parametrize(
    ("params", "env"),
    [
        ('"a1 b2 KEY=v3 \\"d 4\\""', {"1": "a1", "2": "b2", "KEY": "v3", "4": "d 4"}),
        ("\"'a b' `c d` k='x y'\"", {"1": "'a", "2": "b'", "3": "`c d`", "k": "'x", "5": "y'"}),
        ("[A=1, two, B: 3]", {"A": "1", "2": "two", "B": "3"}),
        ("{B: 1.10, A: true, E: '', N: null, I: 0x10}", {"B": "1.1", "A": "true", "E": "", "N": "<nil>", "I": "16"}),
        ("[A=1, {name: n, type: integer, default: 010}, {name: only}]", {"A": "1", "n": "8", "name": "only"}),
        ("[{name: s, default: '${env.HOME} `id`'}]", {"s": "${env.HOME} `id`"}),
    ],
)
def test_every_declaration_form_gives_its_defaults(params: str, env: dict[str, str]) -> None:
    assert dict(bound(f"params: {params}\nsteps: [{{run: x}}]", "").env) == env


@pytest.mark.parametrize(
    "params",
    ["{a-b: 1}", "'1a=x'", "[_a=x]", "[{name: a b, type: string}]", "[{name: a, minLength: 1}]", "{a: [1]}",
     "[a=1, a=2]", "[{name: a, type: text}]", "[[a]]", "[{name: a, pattern: '('}]", "[{name: a, required: yes}]"],
)  # fmt: skip
def test_a_declaration_that_is_none_is_refused(params: str) -> None:
    with pytest.raises(DefinitionError, match="params"):
        load_definition(f"params: {params}\nsteps: [{{run: x}}]")


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("integer", "+7", "7"), ("integer", "-0", "0"), ("number", "1.50", "1.5"), ("number", "1e3", "1000"),
        ("number", ".5", "0.5"), ("number", "5.", "5"), ("number", "+2", "2"),
        ("boolean", "TRUE", "true"), ("boolean", "0", "false"), ("string", "01", "01"),
    ],
)  # fmt: skip
def test_a_typed_value_is_written_in_one_way(kind: str, given: str, text: str) -> None:
    assert bound(f"params: [{{name: p, type: {kind}}}]\nsteps: [{{run: x}}]", f"p={given}").env == {"p": text}


@pytest.mark.parametrize("given", ["1.5", "x", "", "1e3"])
def test_what_is_no_integer_is_not_made_one(given: str) -> None:
    with pytest.raises(DefinitionError, match=f'p: cannot coerce "{given}" to integer'):
        bound("params: [{name: p, type: integer}]\nsteps: [{run: x}]", f'p="{given}"')


@pytest.mark.parametrize("given", ["true", "NaN", "inf", "1_0", "0x10", "٣", "[1]"])
def test_what_is_no_number_is_not_made_one(given: str) -> None:
    with pytest.raises(DefinitionError, match="to number"):
        bound("params: [{name: p, type: number}]\nsteps: [{run: x}]", f"p={given}")


@pytest.mark.parametrize("value", ["prod", "true", "1.5", "''"])
def test_a_parameter_may_be_called_schema(value: str) -> None:
    params = bound(f"params: {{schema: {value}}}\nsteps: [{{run: x}}]", "")
    assert params.named == {"schema": value.strip("'")}


def test_an_object_in_a_list_whose_keys_are_no_names_is_one_value() -> None:
    assert bound("steps: [{run: x}]", '[{"a b":1},2]').env == {"1": '{"a b":1}', "2": "2"}
