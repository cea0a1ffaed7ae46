"""Build DAGs: edges by files, decisions, recipes (workflow language, section 3.17)."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from secure_dagu.dag import recipes
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag
from secure_dagu.dag.plan import make_plan
from secure_dagu.dag.recipes import Decision, Manifest, Reason, StepPaths, Verdict
from secure_dagu.dag.scope import Env, Layer, Scope
from secure_dagu.errors import DefinitionError


def load(steps: str) -> Dag:
    return load_definition(f"type: build\nsteps:\n{steps}", name="demo").main


def canonical(path: str) -> str:
    return posixpath.normpath(posixpath.join("/src", path))


def paths_of(dag: Dag, scope: Scope | None = None) -> dict[str, StepPaths]:
    return dict(recipes.find_paths(dag, scope or Scope(consts=dag.consts), canonical))


TWO = """
  - {id: use, inputs: [{name: i, path: mid}], outputs: [{name: o, path: end}], run: 'true'}
  - {id: make, depends: plain, outputs: [{name: o, path: ./mid}], run: 'true'}
  - {id: plain, run: 'true'}
"""


def test_reading_what_another_step_makes_is_waiting_for_it() -> None:
    dag = load(TWO)
    plan = make_plan(dag, recipes.edges(dag, paths_of(dag)))
    assert [plan.steps[position].name for position in plan.order] == ["plain", "make", "use"]
    assert plan.ancestors(plan.index["use"]) == (plan.index["make"], plan.index["plain"])
    assert dag.step("use").depends == (), "what the author wrote stays as it is"


def test_a_step_that_is_named_and_read_counts_once() -> None:
    dag = load(TWO.replace("{id: use,", "{id: use, depends: make,"))
    plan = make_plan(dag, recipes.edges(dag, paths_of(dag)))
    assert plan.dependencies[0] == (1,)


def test_an_input_may_name_the_step_that_makes_it() -> None:
    dag = load(TWO.replace("path: mid}]", 'path: "${steps.make.outputs.o}"}]'))
    assert paths_of(dag)["use"].inputs == {"i": "/src/mid"}
    assert recipes.edges(dag, paths_of(dag)) == {"use": ("make",)}


def test_two_producers_of_one_path_are_named() -> None:
    dag = load(TWO.replace("path: end", "path: x/../mid"))
    with pytest.raises(DefinitionError, match="build output path /src/mid has multiple producers: use and make"):
        recipes.edges(dag, paths_of(dag))


@pytest.mark.parametrize("path", ["end", "./end"])
def test_a_step_that_reads_what_it_makes_is_a_cycle(path: str) -> None:
    dag = load(TWO.replace("path: mid}]", f"path: {path}}}]"))
    with pytest.raises(DefinitionError, match="cyclic plan detected"):
        make_plan(dag, recipes.edges(dag, paths_of(dag)))


def test_a_reference_without_a_value_is_an_error() -> None:
    dag = load(TWO.replace("path: mid}]", "path: '${steps.plain.outputs.o}'}]"))
    with pytest.raises(DefinitionError, match=r"inputs of the step 'use': \$\{steps.plain.outputs.o\} has no value"):
        paths_of(dag)


MANIFEST = Manifest(recipe="r", inputs={"a": "1", "b": "2"}, output="o", producer="demo/1")


@pytest.mark.parametrize(
    ("manifest", "recipe", "inputs", "output", "expected"),
    [
        (MANIFEST, "r", {"a": "1", "b": "2"}, "o", Decision(Verdict.REUSE, Reason.MATCHED)),
        (None, "r", {"a": "1", "b": "2"}, "o", Decision(Verdict.EXECUTE, Reason.MANIFEST_MISSING)),
        (None, "r", {"a": "1", "b": "2"}, None, Decision(Verdict.EXECUTE, Reason.MANIFEST_MISSING)),
        (MANIFEST, "s", {"a": "9", "b": "2"}, None, Decision(Verdict.EXECUTE, Reason.RECIPE_CHANGED)),
        (MANIFEST, "r", {"a": "1", "b": "9"}, None, Decision(Verdict.EXECUTE, Reason.INPUT_CHANGED, "b")),
        (MANIFEST, "r", {"a": "1", "b": "2"}, None, Decision(Verdict.EXECUTE, Reason.OUTPUT_MISSING)),
        (MANIFEST, "r", {"a": "1", "b": "2"}, "p", Decision(Verdict.EXECUTE, Reason.OUTPUT_CHANGED)),
    ],
)
def test_decisions(
    manifest: Manifest | None, recipe: str, inputs: dict[str, str], output: str | None, expected: Decision
) -> None:
    assert recipes.decide(manifest=manifest, recipe=recipe, inputs=inputs, output=output) == expected


@given(
    recipe=st.sampled_from(["r", "s"]),
    inputs=st.fixed_dictionaries({"a": st.sampled_from(["1", "9"]), "b": st.sampled_from(["2", "9"])}),
    output=st.sampled_from(["o", "p", None]),
    is_known=st.booleans(),
)
def test_only_what_is_the_same_in_all_is_reused(
    recipe: str, inputs: dict[str, str], output: str | None, *, is_known: bool
) -> None:
    decision = recipes.decide(manifest=MANIFEST if is_known else None, recipe=recipe, inputs=inputs, output=output)
    same = is_known and (recipe, inputs, output) == ("r", {"a": "1", "b": "2"}, "o")
    assert (decision.verdict is Verdict.REUSE) is same
    assert decision.runs is not same


BUILD_STEP = "  - id: a\n    outputs: [{name: o, path: x}]\n    run: 'true'\n"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("", ""),
        ("    retry_policy: {limit: 1, interval_sec: 0}\n", ""),
        ("    repeat_policy: {repeat: true, limit: 1}\n", "repeat_policy"),
        ("    approval: {prompt: x}\n", "approval"),
        ("    output: X\n", "`output`"),
        ("    output_schema: {type: object}\n", "`output`"),
        ("    stdout: {outputs: x}\n", "stdout.outputs"),
    ],
)
def test_what_makes_a_step_ineligible(extra: str, why: str) -> None:
    dag = load(BUILD_STEP + extra)
    found = recipes.ineligible(dag, dag.steps[0], has_secrets=False)
    assert (why in found) if why else found == ""


@pytest.mark.parametrize(
    "step",
    [
        "  - {id: a, run: 'true'}",
        "  - {id: a, action: log.write, with: {message: x}}",
        "  - {id: a, outputs: [{name: v}], run: 'true'}",
        "  - {id: a, outputs: [{name: v}, {name: o, path: x}], run: 'true'}",
        "  - {id: a, foreach: {items: [1], steps: [{run: 'true'}]}}",
    ],
)
def test_steps_without_exactly_one_file_are_ineligible(step: str) -> None:
    dag = load(step)
    assert recipes.ineligible(dag, dag.steps[0], has_secrets=False)


def test_secrets_make_every_step_ineligible() -> None:
    dag = load(BUILD_STEP)
    assert "secrets" in recipes.ineligible(dag, dag.steps[0], has_secrets=True)


def recipe_of(steps: str = BUILD_STEP, scope: Scope | None = None, **changes: str) -> str:
    dag = load(steps)
    where = {"cwd": "/runs/1/work", "work_dir": "/runs/1/work", "platform": "linux-x86_64", **changes}
    return recipes.recipe(
        dag.steps[0], scope or Scope(), paths_of(dag)["a"], interpreter=["sh", "-e"],
        cwd=where["cwd"], work_dir=where["work_dir"], platform=where["platform"],
    )  # fmt: skip


def test_a_recipe_is_the_same_wherever_the_run_keeps_its_scratch() -> None:
    assert recipe_of() == recipe_of(cwd="/runs/2/work", work_dir="/runs/2/work")
    assert recipe_of() != recipe_of(cwd="/elsewhere")
    assert recipe_of() != recipe_of(platform="darwin-arm64")


def test_a_recipe_does_not_know_the_staging_file() -> None:
    steps = BUILD_STEP.replace("'true'", '"cat > ${outputs.o}"\n    env: [{TO: "${outputs.o}"}]')
    first, second = (Scope(build_outputs={"o": f"/src/.secure-dagu-{token}.x"}) for token in "12")
    assert recipe_of(steps, first) == recipe_of(steps, second)


@pytest.mark.parametrize(
    ("layer", "matters"),
    [
        (Layer.HOST, False),
        (Layer.PROFILE, True),
        (Layer.PARAMS, True),
        (Layer.MANAGED, False),
        (Layer.ROOT_ENV, True),
        (Layer.DOTENV, True),
        (Layer.INJECTED, True),
        (Layer.PROTECTED, False),
        (Layer.SECRETS, False),
        (Layer.STEP_MANAGED, False),
        (Layer.OUTPUTS, True),
        (Layer.ATTEMPT, False),
    ],
)
def test_which_variables_belong_to_a_recipe(layer: Layer, matters: bool) -> None:
    scope = Scope(env=Env().with_layer(layer, {"X": "1"}))
    assert (recipe_of(scope=scope) != recipe_of()) is matters


def test_inherited_managed_variables_do_not_belong_to_a_recipe() -> None:
    scope = Scope(env=Env().with_layer(Layer.PROFILE, {"DAG_RUN_ID": "1", "DAGU_EXECUTABLE": "x"}))
    assert recipe_of(scope=scope) == recipe_of()


def test_a_fingerprint_is_of_recipe_and_inputs_in_any_order() -> None:
    assert recipes.fingerprint("r", {"a": "1", "b": "2"}) == recipes.fingerprint("r", {"b": "2", "a": "1"})
    assert recipes.fingerprint("r", {"a": "1"}) != recipes.fingerprint("r", {"a": "2"})


RUNS = Decision(Verdict.EXECUTE, Reason.INPUT_CHANGED)
REUSED = Decision(Verdict.REUSE, Reason.MATCHED)
ALWAYS = Decision(Verdict.ALWAYS, Reason.INELIGIBLE)
DEFERRED = Decision(Verdict.DEFERRED, Reason.UPSTREAM_WOULD_EXECUTE)
NO_INPUT = Decision(Verdict.NONE, Reason.INPUT_MISSING, "i")


@pytest.mark.parametrize(
    ("depends", "reads", "before", "judged", "expected"),
    [
        ([], [], {}, REUSED, REUSED),
        ([], ["b"], {"b": REUSED}, REUSED, REUSED),
        ([], ["b"], {"b": RUNS}, REUSED, "deferred (upstream_would_execute)"),
        ([], ["b"], {"b": ALWAYS}, NO_INPUT, "deferred (upstream_would_execute)"),
        ([], ["b"], {"b": DEFERRED}, REUSED, "deferred (upstream_would_execute)"),
        (["b"], [], {"b": RUNS}, REUSED, "execute (control_dependency_ran)"),
        (["b"], ["b"], {"b": ALWAYS}, REUSED, "execute (control_dependency_ran)"),
        (["b"], [], {"b": DEFERRED}, REUSED, "deferred (upstream_would_execute)"),
        (["b"], [], {"b": REUSED}, NO_INPUT, NO_INPUT),
        (["b"], ["b"], {"b": RUNS}, ALWAYS, ALWAYS),
        ([], ["b"], {"b": RUNS}, Decision(Verdict.EXECUTE, Reason.REUSE_DISABLED), "execute (reuse_disabled)"),
    ],
)
def test_previews(
    depends: list[str], reads: list[str], before: dict[str, Decision], judged: Decision, expected: Decision | str
) -> None:
    step = replace(load(BUILD_STEP).steps[0], depends=tuple(depends))
    found = recipes.preview(step, reads, before, judged)
    if isinstance(expected, str):
        assert f"{found.verdict} ({found.reason})" == expected
    else:
        assert found == expected


def test_a_staging_file_stands_beside_the_final_one_and_ends_like_it() -> None:
    assert recipes.staging_path("/a/b/c.tar.gz", "t") == "/a/b/.secure-dagu-t.c.tar.gz"
