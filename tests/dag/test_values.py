"""Appendix A of the workflow language, and the sentences of its section 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag import references
from secure_dagu.dag.model import EnvEntry
from secure_dagu.dag.scope import Env, Layer, Scope, StepView, StepViews
from secure_dagu.dag.values import FieldMode, evaluate_env, resolve, resolve_dynamic, resolve_tree

META = '{"ver":"1.4","list":["q","r"]}'

SCOPE = Scope(
    env=Env()
    .with_layer(Layer.HOST, {"HOSTONLY": "h"})
    .with_layer(
        Layer.ROOT_ENV,
        {
            "CITY": "Oslo",
            "NONE": "",
            "DOC": '{"k":{"n":[10,20]},"s":"t","z":null}',
            "FILE": "x/y/z.tar.gz",
            "QUOTE": 'say "hi"\n',
        },
    )
    .with_layer(Layer.OUTPUTS, {"META": META}),
    consts={"port": 8443, "base": "h:8443", "yes": True, "ratio": 1.10, "big": 1e21},
    params={"who": "a b", "name": "prod"},
    params_json='{"who":"a b"}',
    context={"dag.name": "demo", "run.id": "r1", "attempt.started_at": "2026-01-01T00:00:00Z"},
    declared={"q": {"name": "zed"}},
    steps={
        "p": StepView(output=META, outputs=None, stdout="/logs/p.out", exit_code=0),
        "q": StepView(outputs={"name": "zed", "data": {"a": [1, None]}}, exit_code=0),
    },
)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${consts.base}", "h:8443"),
        ("${ consts.base }", "h:8443"),
        ("${consts.port} ${consts.yes} ${consts.ratio}", "8443 true 1.1"),
        ("${consts.big}", "1000000000000000000000"),
        ("${params.who} ${params.nope}", "a b ${params.nope}"),
        ("${params}", '{"who":"a b"}'),
        ("$CITY ${CITY} ${env.CITY}", "Oslo Oslo Oslo"),
        ("$NOPE ${NOPE} ${env.NOPE}", "$NOPE ${NOPE} ${env.NOPE}"),
        ("'$CITY' '${env.CITY}' \"$CITY\"", "'$CITY' 'Oslo' \"Oslo\""),
        ("it's $CITY", "it's Oslo"),
        (r"\$CITY", "$CITY"),
        (r"\\$CITY", r"\\Oslo"),
        (r"\${env.CITY}", "${env.CITY}"),
        (r"\\${env.CITY}", r"\\Oslo"),
        (r"\${params.name}", "${params.name}"),
        (r"\\${params.name}", r"\\prod"),
        (r"\\\${params.name}", r"\\${params.name}"),
        ("${CITY:1:2}", "sl"),
        ("${CITY: -2}", "lo"),
        ("${CITY:1:-1}", "sl"),
        ("${CITY:9}", ""),
        ("${CITY:-d}", "Oslo"),
        ("${NONE:-d}", "d"),
        ("[${NONE-d}]", "[]"),
        ("${NONE:-<$CITY>}", "<Oslo>"),
        ("${NONE:-<${CITY}>}", "<Oslo>"),
        ("${#CITY}", "4"),
        ("${FILE##*/}", "z.tar.gz"),
        ("${FILE#*/}", "y/z.tar.gz"),
        ("${FILE%%.*}", "x/y/z"),
        ("${FILE%.*}", "x/y/z.tar"),
        ("${FILE/y/Y}", "x/Y/z.tar.gz"),
        ("${FILE//[xy]/-}", "-/-/z.tar.gz"),
        ("${CITY:+yes}", "yes"),
        ("${NONE:+yes}", ""),
        ("${NOPE:+yes}", "${NOPE:+yes}"),
        ("${NOPE:?err}", "${NOPE:?err}"),
        ("${NOPE:-d}", "${NOPE:-d}"),
        ("${NONE:=w} ${CITY:-d} $CITY", "${NONE:=w} ${CITY:-d} Oslo"),
        ("${CITY^^}", "${CITY^^}"),
        ("${DOC.k.n[1]}", "20"),
        ("${DOC.s}", "t"),
        ("${DOC.k}", '{"n":[10,20]}'),
        ("$DOC.s", "t"),
        ("${DOC.missing}", "<nil>"),
        ("${DOC.z}", "<nil>"),
        ("$CITY.log", "Oslo.log"),
        ("${p.output}", META),
        ("${p.output.ver}", "1.4"),
        ("${p.output.list[0]}", "q"),
        ("${META.ver}", "1.4"),
        ("${p.exit_code}", "0"),
        ("${p.stdout}", "/logs/p.out"),
        ("${p.output:0:4}", '{"ve'),
        ("${nosuch.output}", "${nosuch.output}"),
        ("${q.output}", "${q.output}"),
        ("${steps.q.outputs.name}", "zed"),
        ("${q.outputs.name}", "zed"),
        ("${q.outputs.data.a}", "[1,null]"),
        ("${steps.q.outputs.other}", "${steps.q.outputs.other}"),
        ("${steps.own.outputs.name}", "${steps.own.outputs.name}"),
        ("$(date) `date`", "$(date) `date`"),
        ("${bad ref} ${} $ $$", "${bad ref} ${} $ $$"),
        ("${dag.name} ${context.dag.name}", "demo demo"),
        ("${run.started_at}", "2026-01-01T00:00:00Z"),
        ("${run.bogus} ${context.bogus.x}", "${run.bogus} ${context.bogus.x}"),
        ("${params...} ${consts.a.b} ${env}", "${params...} ${consts.a.b} ${env}"),
        ("$params.who $consts.base $env.CITY", "$params.who $consts.base $env.CITY"),
        ("${open $CITY", "${open $CITY"),
        ("$HOSTONLY ${env.HOSTONLY}", "$HOSTONLY ${env.HOSTONLY}"),
        ('{"text": "${QUOTE}"}', '{"text": "say \\"hi\\"\\n"}'),
    ],
)
def test_an_action_input_resolves_as_the_reference_says(text: str, result: str) -> None:
    assert resolve(text, SCOPE, FieldMode.FIELD) == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$CITY ${CITY} ${CITY:-d} $(date) $2", "$CITY ${CITY} ${CITY:-d} $(date) $2"),
        ("${env.CITY} ${consts.base} ${params.who}", "Oslo h:8443 a b"),
        (r"\$CITY", r"\$CITY"),
        (r"\$1 \$(cmd)", r"\$1 \$(cmd)"),
        (r"\${env.CITY}", "${env.CITY}"),
        ("'${env.CITY}'", "'Oslo'"),
        ("${DOC.s} $DOC.s ${p.output.ver}", "t t 1.4"),
        ("$CITY.log", "$CITY.log"),
        ("${arr[@]} ${#arr[@]} ${x//a/b}", "${arr[@]} ${#arr[@]} ${x//a/b}"),
    ],
)
def test_shell_text_reaches_the_shell_as_the_reference_says(text: str, result: str) -> None:
    assert resolve(text, SCOPE, FieldMode.SHELL) == result


def test_an_array_of_the_shell_is_its_own_also_when_a_variable_of_its_name_holds_json() -> None:
    scope = Scope(env=Env().with_layer(Layer.ROOT_ENV, {"arr": '["a",{"k":"v"}]'}))
    assert resolve("${arr[0]} $arr[0] ${arr[1].k}", scope, FieldMode.SHELL) == "${arr[0]} $arr[0] ${arr[1].k}"
    assert resolve("${arr[0]} $arr[0] ${arr[1].k}", scope, FieldMode.FIELD) == "a a v"


def test_positional_parameters_are_expanded_even_in_shell_text() -> None:
    scope = Scope(env=Env().with_layer(Layer.PARAMS, {"1": "one", "2": "two"}))
    assert resolve("$1 ${2} $3 $12", scope, FieldMode.SHELL) == "one two $3 one2"
    assert resolve("awk '{print $1}' \"$1\"", scope, FieldMode.SHELL) == "awk '{print $1}' \"one\""


@pytest.mark.parametrize("alias", sorted(references.FROZEN_ALIASES))
def test_each_frozen_alias_has_the_value_of_its_context_field(alias: str) -> None:
    scope = Scope(context={references.FROZEN_ALIASES[alias]: "v"})
    for mode in FieldMode:
        assert resolve(f"${{{alias}}} ${{ {alias} }} ${alias}", scope, mode).startswith("v v $")
    assert resolve(f"${{context.{references.FROZEN_ALIASES[alias]}}}", scope, FieldMode.SHELL) == "v"
    assert resolve(f"${{{alias}}}", Scope(), FieldMode.SHELL) == f"${{{alias}}}"


def test_the_frozen_aliases_are_exactly_those_of_the_reference() -> None:
    assert set(references.FROZEN_ALIASES) == {
        "dag.name",
        "run.id",
        "run.status",
        "run.started_at",
        "run.scheduled_at",
        "run.root_name",
        "run.root_id",
        "attempt.id",
        "step.id",
        "step.name",
        "trigger.type",
        "trigger.actor",
        "paths.log_file",
        "paths.work_dir",
        "paths.artifacts_dir",
        "paths.step_stdout_file",
        "paths.step_stderr_file",
        "paths.step_output_file",
        "profile.name",
        "profile.resolved_at",
        "pushback.iteration",
        "pushback.previous_stdout_file",
    }


EVERYTHING = Scope(
    env=Env().with_layer(Layer.ROOT_ENV, {"X": "x", "step": "s", "not": "n"}),
    consts={"a": "A"},
    params={"a": "P"},
    params_json="{}",
    context={"run.id": "R"},
    declared={"build": {"x": "O", "m": "M"}},
)


@pytest.mark.parametrize(
    "text",
    [
        "${params...}", "${consts.a.b}", "${not.env}", "${env}", "${steps.build-step.outputs.x}",
        "${steps.b.outputs.m.tag}", "${step.xxx.foo}", "${unrelated.context}", "$params.a", "$consts.a",
        "$env.X", "$steps.build.outputs.x", "$params", "${consts}", "${steps}", "${steps.build}",
        "${steps.build.outputs}",
        "${Consts.a}", "${consts.1a}", "${consts.a-b}", "${params.}", "${.params}", "${context}", "${context.run}",
        "${env.1X}", "${env.X.y}", "${\tconsts.a\t}", "${foreach}", "${run.name}", "${dag.id}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", FieldMode)
def test_what_is_not_in_the_grammar_is_ordinary_text(text: str, mode: FieldMode) -> None:
    assert resolve(text, EVERYTHING, mode) == text


def test_an_unclosed_brace_swallows_what_follows() -> None:
    for mode in FieldMode:
        assert resolve("${consts.a} ${open ${X ${consts.a", EVERYTHING, mode) == "A ${open ${X ${consts.a"
        assert resolve("${open ${consts.a} ${consts.a}", EVERYTHING, mode) == "${open ${consts.a} A"


@pytest.mark.parametrize(
    ("slashes", "result"),
    [(0, "V"), (1, "REF"), (2, r"\\V"), (3, r"\\REF"), (4, r"\\\\V")],
)
@pytest.mark.parametrize("mode", FieldMode)
def test_an_odd_backslash_protects_a_strict_reference(slashes: int, result: str, mode: FieldMode) -> None:
    text = "\\" * slashes + "${params.a}"
    assert resolve(text, EVERYTHING, mode) == result.replace("V", "P").replace("REF", "${params.a}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"), (False, "false"), (0, "0"), (-7, "-7"), (10**20, "100000000000000000000"), (1.0, "1"),
        (0.1, "0.1"), (1e-7, "0.0000001"), (1.5e300, "15" + "0" * 299), (2.50, "2.5"), ("", ""), ("1.10", "1.10"),
    ],
)  # fmt: skip
def test_a_scalar_is_inserted_in_plain_decimal(value: object, shown: str) -> None:
    assert resolve("[${consts.v}]", Scope(consts={"v": value}), FieldMode.SHELL) == f"[{shown}]"


ACCENTED = Scope(env=Env().with_layer(Layer.ROOT_ENV, {"E": "éa", "EMPTY": "", "P": "a.b.c", "B": "[", "W": "x"}))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${#E}", "2"), ("${E:2}", "a"), ("${E:0:2}", "é"), ("${E: -1}", "a"), ("${E:0:-1}", "é"), ("${E:99}", ""),
        ("${E:0:99}", "éa"), ("${E: -99}", "éa"), ("${EMPTY:+w}", ""), ("${EMPTY+w}", "w"), ("${EMPTY-w}", ""),
        ("${EMPTY:?w}", "${EMPTY:?w}"), ("${EMPTY?w}", ""), ("${EMPTY=w}", ""), ("${W:=v}", "x"), ("${W=v}", "x"),
        ("${W:?v}", "x"), ("${W?v}", "x"), ("${W+$E}", "éa"), ("${P#*.}", "b.c"), ("${P##*.}", "c"), ("${P%.*}", "a.b"),
        ("${P%%.*}", "a"), ("${P#[}", "a.b.c"), ("${P%${EMPTY}c}", "a.b."), ("${P/./-}", "a-b.c"),
        ("${P//./-}", "a-b-c"),
        ("${EMPTY:=w} ${W:-v} ${W:+v} $W ${W} ${env.W}", "${EMPTY:=w} ${W:-v} ${W:+v} x x x"),
        ("${NO:-w} ${NO:=w} ${#NO} ${NO#a}", "${NO:-w} ${NO:=w} ${#NO} ${NO#a}"), ("${W:x}", "${W:x}"),
        ("${1W:-a} ${-W}", "${1W:-a} ${-W}"), ("'${W:-v}'", "'${W:-v}'"),
    ],
)  # fmt: skip
def test_shell_style_forms_do_what_the_table_says(text: str, result: str) -> None:
    assert resolve(text, ACCENTED, FieldMode.FIELD) == result
    assert resolve(text, ACCENTED, FieldMode.SHELL).replace("${env.W}", "x") in (text.replace("${env.W}", "x"), result)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("'$CITY ${CITY}' $CITY", "'$CITY ${CITY}' Oslo"),
        ("it's $CITY and ${CITY}", "it's Oslo and Oslo"),
        ("'a' it's $CITY", "'a' it's Oslo"),
        ("'${params.who}${consts.port}${dag.name}'", "'a b8443demo'"),
        ("'$DOC.s' '${p.output.ver}'", "'$DOC.s' '1.4'"),
        ("\"'$CITY'\"", "\"'$CITY'\""),
    ],
)
def test_single_quotes_keep_plain_names_but_no_strict_reference(text: str, result: str) -> None:
    assert resolve(text, SCOPE, FieldMode.FIELD) == result


def test_slices_count_characters_and_paths_give_texts() -> None:
    scope = Scope(
        steps={
            "p": StepView(output="éàü", stdout="/o", stderr="/e", exit_code=3),
            "m": StepView(output={"k": '{"d": 1}'}),
        }
    )
    text = "${p.output:1} ${p.output:1:1} ${p.output:9} ${p.stdout:1} ${p.exitCode} ${p.stderr} ${m.output}"
    text += " ${m.output.k.d}"
    for mode in FieldMode:
        assert resolve(text, scope, mode) == 'àü à  o 3 /e {"k":"{\\"d\\": 1}"} 1'
    for kept in ("${p.output:-1}", "${p.output:x}", "${p.outputs}", "${p.nope}", "${p.output.a}"):
        assert resolve(kept, scope, FieldMode.SHELL) == kept


def test_a_backslash_before_a_name_is_a_path_character_in_a_path() -> None:
    assert resolve(r"logs\$CITY", SCOPE, FieldMode.PATH) == r"logs\Oslo"
    assert resolve(r"logs\$CITY.log", SCOPE, FieldMode.PATH) == r"logs\Oslo.log"
    assert resolve(r"logs\${env.CITY}", SCOPE, FieldMode.PATH) == "logs${env.CITY}"


def test_only_fields_with_host_fallback_see_host_values() -> None:
    assert resolve("$HOSTONLY ${env.HOSTONLY}", SCOPE, FieldMode.HOST) == "h h"


def test_an_inserted_value_is_never_looked_at_again() -> None:
    scope = Scope(
        params={"a": "${params.b} $X `id` $(id)", "b": "boom"}, env=Env().with_layer(Layer.ROOT_ENV, {"X": "y"})
    )
    for mode in FieldMode:
        assert resolve("${params.a}", scope, mode) == "${params.b} $X `id` $(id)"


def test_a_tree_keeps_its_shape_and_keys() -> None:
    tree = {"${consts.base}": ["$CITY", 1, None, {"x": "${params.who}"}]}
    assert resolve_tree(tree, SCOPE, FieldMode.FIELD) == {"${consts.base}": ["Oslo", 1, None, {"x": "a b"}]}


def test_foreach_values_are_seen_only_inside_a_body() -> None:
    scope = Scope(foreach={"index": 0, "key": "k", "item": {"name": "n", "tags": [1]}})
    text = "${foreach.index} ${foreach.item.name} ${foreach.item} ${foreach.item.no}"
    assert resolve(text, scope, FieldMode.SHELL) == '0 n {"name":"n","tags":[1]} ${foreach.item.no}'
    assert resolve(text, Scope(), FieldMode.SHELL) == text


def test_an_env_entry_sees_earlier_entries_but_not_itself_or_later_ones() -> None:
    entries = [
        EnvEntry(name="A", value="1"),
        EnvEntry(name="B", value="$A$B$C"),
        EnvEntry(name="C", value="${env.B}"),
        EnvEntry(name="A", value="2"),
        EnvEntry(name="D", value="$A"),
    ]
    scope = evaluate_env(entries, Scope(), layer=Layer.STEP_ENV)
    assert scope.env.layer(Layer.STEP_ENV) == {"A": "2", "B": "1$B$C", "C": "1$B$C", "D": "2"}


def test_only_root_env_imports_from_the_host() -> None:
    entries = [EnvEntry(name="REGION", value="${HOSTONLY}")]
    assert evaluate_env(entries, SCOPE, layer=Layer.ROOT_ENV).env.find("REGION", host=False) == "h"
    assert evaluate_env(entries, SCOPE, layer=Layer.STEP_ENV).env.find("REGION", host=False) == "${HOSTONLY}"


def test_a_later_layer_wins_and_provenance_is_kept() -> None:
    env = Env().with_layer(Layer.SECRETS, {"X": "s"}).with_layer(Layer.HOST, {"X": "h", "Y": "y"})
    assert env.flat() == {"X": "s", "Y": "y"}
    assert (env.origin("X"), env.origin("Y"), env.origin("Z")) == (Layer.SECRETS, Layer.HOST, None)


def test_step_views_are_made_only_when_read() -> None:
    made: list[str] = []

    def make() -> StepView:
        made.append("p")
        return StepView(output="v")

    scope = Scope(steps=StepViews({"p": make}))
    assert resolve("${x.output}", scope, FieldMode.SHELL) == "${x.output}"
    assert made == []
    assert resolve("${p.output}${p.output}", scope, FieldMode.SHELL) == "vv"
    assert made == ["p"]


@pytest.mark.parametrize(
    ("text", "commands", "pieces"),
    [
        ("a $(echo x) b `id` c", ("echo x", "id"), ("a ", " b ", " c")),
        ("$(echo ${params.who})", ("echo a b",), ("", "")),
        (r"$(echo \) x)", ("echo ) x",), ("", "")),
        (r"\$(id) \`id\`", (), ("$(id) `id`",)),
        ("$(never closed `id", (), ("$(never closed `id",)),
        ("$HOSTONLY $CITY", (), ("h Oslo",)),
    ],
)
def test_dynamic_text_gives_the_commands_to_run(text: str, commands: tuple[str, ...], pieces: tuple[str, ...]) -> None:
    dynamic = resolve_dynamic(text, SCOPE)
    assert (dynamic.commands, dynamic.pieces) == (commands, pieces)


def test_a_value_can_neither_open_nor_close_a_command() -> None:
    scope = Scope(params={"evil": "`rm` $(rm) )"})
    dynamic = resolve_dynamic("${params.evil} $(echo ${params.evil})", scope)
    assert dynamic.commands == ("echo `rm` $(rm) )",)
    assert dynamic.fill(["done"]) == "`rm` $(rm) ) done"


_alphabet = st.text(alphabet="$\\{}'\"`()[]#%/:-+=?.abpqCITYDOC01 \n", max_size=60) | st.text(max_size=40)


@given(text=_alphabet, mode=st.sampled_from(FieldMode))
def test_resolving_arbitrary_text_never_raises(text: str, mode: FieldMode) -> None:
    resolve(text, SCOPE, mode)
    resolve_dynamic(text, SCOPE)


@given(text=_alphabet, mode=st.sampled_from(FieldMode))
def test_unresolved_text_is_preserved_byte_for_byte(text: str, mode: FieldMode) -> None:
    if "\\" not in text:
        assert resolve(text, Scope(), mode) == text


@given(value=_alphabet, before=st.text(alphabet="ab ", max_size=5), mode=st.sampled_from(FieldMode))
def test_a_strict_value_is_inserted_as_it_is(value: str, before: str, mode: FieldMode) -> None:
    scope = Scope(params={"v": value}, env=Env().with_layer(Layer.ROOT_ENV, {"CITY": "Oslo"}))
    assert resolve(before + "${params.v}|", scope, mode) == before + value + "|"


@given(text=_alphabet, mode=st.sampled_from(FieldMode))
def test_text_without_a_reference_stays_the_same_when_resolved_again(text: str, mode: FieldMode) -> None:
    if "$" not in text:
        assert resolve(text, SCOPE, mode) == text
    scope = Scope(params={"a": text})
    once = resolve("${params.a}", scope, mode)
    assert once == text


@given(values=st.dictionaries(st.sampled_from(["A", "B", "C"]), _alphabet, min_size=1), mode=st.sampled_from(FieldMode))
def test_no_inserted_value_changes_what_stands_beside_it(values: dict[str, str], mode: FieldMode) -> None:
    scope = Scope(env=Env().with_layer(Layer.ROOT_ENV, values))
    text = "".join(f"<${{env.{name}}}>" for name in values)
    assert resolve(text, scope, mode) == "".join(f"<{value}>" for value in values.values())
