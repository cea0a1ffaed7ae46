"""What `validate` reports: errors at the strict level (1.2), references without a value (2.12)."""

from __future__ import annotations

import pytest

from secure_dagu.dag.notices import Level
from secure_dagu.dag.validate import Validation, validate


def found(text: str, *, show_unresolved: bool = False) -> list[tuple[str, str, str]]:
    result = validate(text, file="w.yaml", show_unresolved=show_unresolved)
    assert result.errors == ()
    return [(notice.token, notice.field, notice.reason) for notice in result.notices]


TWO = """
steps:
  - {id: a, run: echo, outputs: [{name: x}]}
  - {id: other, run: echo, outputs: [{name: x}]}
  - id: b
    depends: [a]
"""


@pytest.mark.parametrize(
    ("fields", "notices"),
    [
        ("    run: echo ${steps.a.outputs.x}", []),
        ("    run: echo ${steps.nope.outputs.x}", [("${steps.nope.outputs.x}", "steps[2].run", "unknown_step_id")]),
        ("    run: echo ${steps.a.outputs.y}", [("${steps.a.outputs.y}", "steps[2].run", "unknown_output_name")]),
        ("    run: echo ${steps.b.outputs.x}", [("${steps.b.outputs.x}", "steps[2].run", "self_reference")]),
        ("    run: ${steps.other.outputs.x}", [("${steps.other.outputs.x}", "steps[2].run", "missing_dependency")]),
        ("    run: ['echo ${context.no.x}']", [("${context.no.x}", "steps[2].run[0]", "unknown_context_field")]),
        ("    run: echo\n    env: [{K: '${consts.none}'}]",
         [("${consts.none}", "steps[2].env[0]", "unknown_const_name")]),
        ("    run: echo\n    env: {K: v, L: '${consts.none}'}",
         [("${consts.none}", "steps[2].env[1]", "unknown_const_name")]),
        ("    action: log.write\n    with: {message: '${consts.none} ${ consts.none } ${consts.none}'}",
         [("${consts.none}", "steps[2].with.message", "unknown_const_name"),
          ("${ consts.none }", "steps[2].with.message", "unknown_const_name")]),
        ("    action: http.request\n    with: {method: GET, url: x, headers: {A: '${consts.none}'}}",
         [("${consts.none}", "steps[2].with.headers.A", "unknown_const_name")]),
        ("    run: echo\n    preconditions: '${consts.none}'",
         [("${consts.none}", "steps[2].preconditions[0].condition", "unknown_const_name")]),
        ("    run: echo\n    preconditions: [{condition: '${consts.none}', expected: x}]",
         [("${consts.none}", "steps[2].preconditions[0].condition", "unknown_const_name")]),
        ("    run: echo\n    working_dir: ${consts.none}",
         [("${consts.none}", "steps[2].working_dir", "unknown_const_name")]),
        ("    run: echo\n    stdout: ${consts.none}", [("${consts.none}", "steps[2].stdout", "unknown_const_name")]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_named_with_field_and_reason(fields: str, notices: list[tuple[str, str, str]]) -> None:
    assert found(TWO + fields) == notices


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("env: [A: '${steps.a.outputs.x}']\nsteps: [{id: a, run: x, outputs: [{name: x}]}]",
         [("${steps.a.outputs.x}", "env[0]", "namespace_unavailable")]),
        ("working_dir: ${steps.a.outputs.x}\nsteps: [{id: a, run: x}]",
         [("${steps.a.outputs.x}", "working_dir", "namespace_unavailable")]),
        ("preconditions: ['${steps.a.outputs.x}']\nsteps: [{id: a, run: x}]",
         [("${steps.a.outputs.x}", "preconditions[0].condition", "namespace_unavailable")]),
        ("handler_on: {success: {run: 'echo ${steps.a.outputs.x}'}}\nsteps: [{id: a, run: x, outputs: [{name: x}]}]",
         [("${steps.a.outputs.x}", "handler_on.success.run", "namespace_unavailable")]),
        ("consts: [{a: '${consts.b}'}, {b: '${consts.a}'}]\nsteps: [{run: x}]",
         [("${consts.b}", "consts.a", "unknown_const_name")]),
        ("consts: [{a: '${consts.a}'}]\nsteps: [{run: x}]", [("${consts.a}", "consts.a", "unknown_const_name")]),
        ("container: {image: i, env: [{A: 1}, {B: '${consts.n}'}]}\nsteps: [{run: x}]",
         [("${consts.n}", "container.env[1]", "unknown_const_name")]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_root_field_or_handler_is_named(text: str, notices: list[tuple[str, str, str]]) -> None:
    assert found(text) == notices


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("env: ['A=$NOPE', 'B=$A ${A} ${env.A}', 'C=${D}', 'D=1']\nsteps: [{run: x}]",
         [("$NOPE", "env[0]", "unknown_env_binding"), ("${D}", "env[2]", "unknown_env_binding")]),
        ("steps: [{run: 'echo ${env.HOME} $X ${params.p} ${context.run.id} ${run.id}'}]",
         [("${env.HOME}", "steps[0].run", "unknown_env_binding"), ("${params.p}", "steps[0].run", ""),
          ("${context.run.id}", "steps[0].run", "namespace_unavailable"),
          ("${run.id}", "steps[0].run", "namespace_unavailable")]),
        ("params: [{name: p, type: string}, {name: q, default: 1}]\nsteps: [{run: '${params.p} ${params.q}'}]",
         [("${params.p}", "steps[0].run", "")]),
        ("steps: [{run: '${foreach.index}'}]", [("${foreach.index}", "steps[0].run", "namespace_unavailable")]),
        ("consts: [{a: '${env.X}'}]\nsteps: [{run: x}]", [("${env.X}", "consts.a", "namespace_unavailable")]),
    ],
)  # fmt: skip
def test_what_only_a_run_can_resolve_is_shown_on_request(text: str, notices: list[tuple[str, str, str]]) -> None:
    assert found(text) == []
    assert found(text, show_unresolved=True) == notices


def test_a_foreach_body_sees_its_item_its_siblings_and_what_the_step_depends_on() -> None:
    text = """
steps:
  - {id: before, run: x, outputs: [{name: v}]}
  - {id: aside, run: x, outputs: [{name: v}]}
  - id: each
    depends: [before]
    foreach:
      items: [1]
      as: thing
      key: k${foreach.index}
      steps:
        - {id: one, run: 'echo ${foreach.thing} ${steps.before.outputs.v}', outputs: [{name: w}]}
        - {id: two, depends: [one], run: 'echo ${steps.one.outputs.w} ${steps.aside.outputs.v}'}
      collect: {r: '${steps.one.outputs.w}', bad: '${foreach.item}'}
"""
    assert found(text, show_unresolved=True) == [
        ("${steps.aside.outputs.v}", "steps[2].foreach.steps[1].run", "missing_dependency"),
        ("${foreach.item}", "steps[2].foreach.collect.bad", "namespace_unavailable"),
    ]


def test_a_foreach_of_a_handler_sees_its_own_body_only() -> None:
    text = """
steps: [{id: a, run: x, outputs: [{name: v}]}]
handler_on:
  exit:
    foreach:
      items: [1]
      steps:
        - {id: one, run: x, outputs: [{name: w}]}
        - {id: two, depends: [one], run: '${steps.one.outputs.w} ${steps.a.outputs.v}'}
"""
    path = "handler_on.exit.foreach.steps[1].run"
    assert found(text) == [("${steps.a.outputs.v}", path, "namespace_unavailable")]


def test_chain_order_is_a_dependency() -> None:
    assert found("type: chain\nsteps: [{id: a, run: x, outputs: [{name: x}]}, {run: '${steps.a.outputs.x}'}]") == []


@pytest.mark.parametrize(
    "text",
    [
        r"\${consts.none}", r"\${steps.a.outputs.x}", "${params...}", "${consts.a.b}", "${not.env}", "$consts.none",
        "${a.output.x}", "${ }", "${open", "${steps.a-b.outputs.x}",
    ],
)  # fmt: skip
def test_escaped_and_unsupported_text_gives_no_notice(text: str) -> None:
    assert found(f"steps: [{{run: 'echo {text}'}}]", show_unresolved=True) == []


def test_literal_fields_give_no_notice() -> None:
    text = """
description: ${consts.none}
params: [{name: p, default: '${consts.none}'}]
steps:
  - {name: a, description: '${consts.none}', run: x}
  - {action: template.render, with: {template: '${consts.none}', data: {}}}
"""
    assert found(text, show_unresolved=True) == []


def test_a_notice_is_a_sentence_with_a_level_and_a_place() -> None:
    [notice] = validate("steps:\n  - run: ${consts.none}\n", file="w.yaml").notices
    assert notice.level is Level.WARN
    assert notice.text.startswith("${consts.none} was left unchanged because ")
    assert notice.text.endswith(" when steps[0].run was evaluated.")
    assert str(notice.position) == "w.yaml:2:10"


def test_local_workflows_are_looked_at_too() -> None:
    text = "steps: [{run: x}]\n---\nname: child\nsteps: [{run: '${consts.none}'}]"
    assert found(text) == [("${consts.none}", "steps[0].run", "unknown_const_name")]


# ------------------------------------------------------------------------------------------------------- strict level


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["empty"]),
        ("---\nsteps: [{run: x}]\n---\n", ["document 2", "empty"]),
        ("name: x\nsteps: [{run: x}]", ["entrypoint", "name"]),
        ("steps: [{run: x}]\n---\nsteps: [{run: x}]", ["document 2", "name"]),
        ("steps: [{run: x}]\n---\nname: a\nsteps: [{run: x}]\n---\nname: a\nsteps: [{run: x}]", ["a", "unique"]),
        ("- x", ["document 1"]),
        ("env: [A: b]", ["steps"]),
        ("steps: {a: {run: x}}", ["steps", "sequence"]),
        ("steps: []", ["steps", "non-empty"]),
        ("steps: [{run: x, dependz: a}]", ["invalid keys", "dependz", "depends"]),
        ("a: [", ["yaml"]),
        ("steps: [{run: x}]\nsteps: [{run: x}]", ["already defined"]),
    ],
)
def test_the_strict_level_refuses_what_a_run_might_accept(text: str, fragments: list[str]) -> None:
    result = validate(text, file="w.yaml")
    assert result.errors
    assert all(fragment in "\n".join(result.errors) for fragment in fragments)
    assert all("w.yaml" in line for line in result.errors)


def test_a_cycle_is_not_looked_for_and_a_valid_file_gives_nothing() -> None:
    cyclic = "steps: [{id: a, run: x, depends: b}, {id: b, run: x, depends: a}]"
    assert validate(cyclic, file="w.yaml") == Validation()


def test_every_problem_is_a_line_of_its_own() -> None:
    result = validate("steps: [{run: x, zzz: 1}, {run: y, depends: nope}]", file="w.yaml")
    assert len(result.errors) == 2
