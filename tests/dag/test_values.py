"""Appendix A of the language reference, and the sentences of its section 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_positional_parameters_are_expanded_even_in_shell_text() -> None:
    scope = Scope(env=Env().with_layer(Layer.PARAMS, {"1": "one", "2": "two"}))
    assert resolve("$1 ${2} $3 $12", scope, FieldMode.SHELL) == "one two $3 one2"


def test_a_backslash_before_a_name_is_a_path_character_in_a_path() -> None:
    assert resolve(r"logs\$CITY", SCOPE, FieldMode.PATH) == r"logs\Oslo"
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
