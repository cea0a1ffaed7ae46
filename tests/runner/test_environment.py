"""Section 2.6 and tables A.1 and A.2 of the workflow language, through real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_dagu.run.model import RunStatus
from tests.runner.harness import HOST_ENV, Children, run


async def test_root_env_reads_and_names_managed_values_but_cannot_change_them(tmp_path: Path) -> None:
    text = """
env:
  - BEFORE: ${DAG_NAME} ${env.DAG_RUN_ID} ${context.run.id}
  - DAG_NAME: mine
  - AFTER: $DAG_NAME
steps:
  - {name: a, run: 'echo "$BEFORE $AFTER $DAG_NAME"'}
  - {name: b, env: [DAG_NAME: local, DAGU_OUTPUT_FILE: /no], run: 'echo "$DAG_NAME"; [ "$DAGU_OUTPUT_FILE" != /no ]'}
"""
    seen = await run(text, tmp_path)
    assert seen.out("a") == "demo run-1 run-1 mine demo\n"
    assert seen.out("b") == "local\n"
    assert seen.status is RunStatus.SUCCEEDED


async def test_each_layer_of_the_environment_covers_the_one_below(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".env").write_text("P=dotenv\nR=dotenv\nS=dotenv\nO=dotenv\nE=dotenv\n")
    text = """
params: H=param P=param R=param
env: [R: root, S: root, O: root, E: root]
secrets: [{name: S, ref: s}]
steps:
  - {name: made, run: echo output, output: O}
  - {name: made2, run: echo output, output: E}
  - {name: a, depends: [made, made2], env: [E: step], run: 'echo "$H $P $R $O $E"; test "$S" = topsecretvalue'}
"""
    seen = await run(
        text, tmp_path, host_env={**HOST_ENV, "H": "host"}, children=Children(secrets={"s": "topsecretvalue"})
    )
    assert seen.out("a") == "param dotenv dotenv output step\n"
    assert seen.status is RunStatus.SUCCEEDED


async def test_dotenv_files_follow_each_other_and_the_default_comes_first(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / ".env").write_text("export A=1\nB='x y' # no\nC=\"l\\n2\"\nD=$A-${A}-$NOPE\n")
    (work / "more.env").write_text("A=2\nF=${B}\n")
    text = """
env: [STEM: more]
dotenv: ["${STEM}.env", missing.env]
steps: [{name: a, run: 'echo "$A|$B|$C|$D|$F"'}]
"""
    seen = await run(text, tmp_path)
    assert seen.out("a") == "2|x y|l\n2|1-1-$NOPE|x y\n"


async def test_an_empty_list_of_dotenv_files_is_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".env").write_text("A=1\n")
    seen = await run("dotenv: []\nsteps: [{name: a, run: 'echo [$A]'}]", tmp_path)
    assert seen.out("a") == "[]\n"


async def test_a_broken_dotenv_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".env").write_bytes(b"A=\xff\xfe\n")
    seen = await run("steps: [{name: a, run: echo ok}]", tmp_path)
    assert seen.status is RunStatus.SUCCEEDED
    assert any(level == "WARN" for level, _, _ in seen.lines)


async def test_output_variables_are_taken_breadth_first_and_the_last_visit_wins(tmp_path: Path) -> None:
    text = """
steps:
  - {name: ancestor, run: echo ancestor, output: N}
  - {name: middle, depends: ancestor, run: echo middle, output: N}
  - {name: direct, run: echo direct, output: N}
  - {name: a, depends: [middle, direct], run: 'echo $N'}
  - {name: b, depends: [direct], run: 'echo $N'}
  - {name: c, run: 'echo [$N]'}
"""
    seen = await run(text, tmp_path)
    assert (seen.out("a"), seen.out("b"), seen.out("c")) == ("ancestor\n", "direct\n", "[]\n")


GIVEN = """
consts: [{port: 8443}, {base: "h:${consts.port}"}]
params: [{name: who, default: "a b"}]
env:
  - CITY: Oslo
  - NONE=
  - DOC: '{"k":{"n":[10,20]},"s":"t","z":null}'
  - FILE: x/y/z.tar.gz
steps:
  - {id: p, run: "printf '%s' '{\\"ver\\":\\"1.4\\",\\"list\\":[\\"q\\",\\"r\\"]}'", output: META}
  - {id: q, run: 'echo name=zed >> "$DAGU_OUTPUT_FILE"', outputs: [{name: name}]}
  - id: a
    depends: [p, q]
"""


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${consts.base} ${ consts.base }", "h:8443 h:8443"),
        ("${params.who} ${params.nope}", "a b ${params.nope}"),
        ("$CITY ${CITY} ${env.CITY} $NOPE", "Oslo Oslo Oslo $NOPE"),
        (r"\$CITY \\$CITY \${env.CITY}", r"$CITY \\Oslo ${env.CITY}"),
        ("${CITY:1:2} ${NONE:-d} [${NONE-d}] ${#CITY} ${FILE##*/}", "sl d [] 4 z.tar.gz"),
        ("${DOC.k.n[1]} ${DOC.k} $DOC.s ${DOC.z}", '20 {"n":[10,20]} t <nil>'),
        ("${p.output.ver} ${META.ver} ${p.exit_code} ${p.output:0:4}", '1.4 1.4 0 {"ve'),
        ("${steps.q.outputs.name} ${q.outputs.name} ${q.output}", "zed zed ${q.output}"),
        ("$(date) `date` ${bad ref} ${} $ $$", "$(date) `date` ${bad ref} ${} $ $$"),
        ("${dag.name} ${run.bogus}", "demo ${run.bogus}"),
    ],
)
async def test_an_action_input_resolves_as_in_table_a1(text: str, result: str, tmp_path: Path) -> None:
    quoted = text.replace("'", "''")
    seen = await run(GIVEN + f"    action: log.write\n    with: {{message: '{quoted}'}}", tmp_path)
    assert seen.out("a") == result + "\n"


async def test_shell_text_keeps_what_is_the_shells(tmp_path: Path) -> None:
    text = r"""    run: |
      cat <<'END'
      $CITY ${CITY} ${CITY:-d} $(date) $2 \$CITY
      ${env.CITY} ${consts.base} ${params.who} \${env.CITY} '${env.CITY}'
      ${DOC.s} $DOC.s ${p.output.ver}
      END
"""
    seen = await run(GIVEN + text, tmp_path)
    assert seen.out("a").splitlines() == [
        r"$CITY ${CITY} ${CITY:-d} $(date) $2 \$CITY",
        "Oslo h:8443 a b ${env.CITY} 'Oslo'",
        "t t 1.4",
    ]


@pytest.mark.parametrize(
    ("params", "caller", "shown"),
    [
        ("a1 KEY=v3", "", 'a1|v3|{"1":"a1","KEY":"v3"}'),
        ("a1 KEY=v3", "x KEY=y", 'x|y|{"1":"x","KEY":"y"}'),
        ("a1 KEY=v3", '["x","y"]', 'x|y|["x","y"]'),
    ],
)
async def test_parameters_are_published(params: str, caller: str, shown: str, tmp_path: Path) -> None:
    text = f"""
params: {params}
steps:
  - name: a
    run: 'printf "%s|%s|%s" "$1" "$KEY" "$DAG_PARAMS_JSON"; test "$DAG_PARAMS_JSON" = "$DAGU_PARAMS_JSON"'
"""
    seen = await run(text, tmp_path, params=caller)
    assert seen.out("a") == shown
    assert seen.status is RunStatus.SUCCEEDED


async def test_an_eval_sees_the_host_and_earlier_parameters(tmp_path: Path) -> None:
    text = """
params:
  - {name: a, default: one}
  - {name: b, eval: "$(echo ${params.a} | tr a-z A-Z)-${FROM_HOST}-`echo $a`"}
  - {name: c, eval: "$(exit 3)", default: back}
  - {name: d, type: integer, eval: "$(echo 7)"}
steps: [{name: a, run: 'echo "${params.b} ${params.c} ${params.d}"'}]
"""
    seen = await run(text, tmp_path, host_env={**HOST_ENV, "FROM_HOST": "h"})
    assert seen.out("a") == "ONE-h-one back 7\n"


async def test_an_eval_that_fails_without_default_ends_the_run_before_any_step(tmp_path: Path) -> None:
    seen = await run("params: [{name: a, eval: '$(exit 3)'}]\nsteps: [{name: a, run: echo}]", tmp_path)
    assert seen.status is RunStatus.FAILED
    assert "params" in seen.final["error"]
    assert "eval failed" in seen.final["error"]
    assert seen.nodes()["a"] == "not_started"


async def test_only_fields_with_host_fallback_see_what_the_filter_holds_back(tmp_path: Path) -> None:
    """Section 2.6: everything else of the host must be imported by root `env`."""
    text = """
env: [IMPORTED: "${ONLY_HERE}"]
dotenv: ["${ONLY_HERE}.env"]
params: [{name: evaluated, eval: "${env.ONLY_HERE}-$ONLY_HERE"}]
steps:
  - {name: a, run: 'echo "$IMPORTED $evaluated $FROM_FILE ${ONLY_HERE-unset}"', env: [STEP: "${ONLY_HERE}"]}
  - {name: b, action: exec, with: {command: echo, args: ["${ONLY_HERE}"]}}
  - {name: c, action: log.write, with: {message: "${ONLY_HERE} ${env.ONLY_HERE}"}}
  - {name: d, preconditions: [{eval: "$ONLY_HERE", expected: value}], run: echo met}
"""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "value.env").write_text("FROM_FILE=file\n")
    seen = await run(text, tmp_path, process_env={"ONLY_HERE": "value"})
    assert [seen.out(name) for name in "abcd"] == [
        "value value-value file unset\n",
        "value\n",
        "${ONLY_HERE} ${env.ONLY_HERE}\n",
        "met\n",
    ]


async def test_a_line_of_a_dotenv_file_that_means_nothing_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".env").write_text("A=1\n=====\nB=2\n")
    seen = await run("steps: [{name: a, run: echo $A$B}]", tmp_path)
    assert seen.out("a") == "12\n"
    warned = [(message, said["file"], said["line"]) for level, message, said in seen.lines if level == "WARN"]
    assert warned == [("Dotenv line not read", ".env", "2")]
