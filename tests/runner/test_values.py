"""What steps see and what they publish: environment, parameters, files, outputs, secrets."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from secure_dagu.run.model import RunStatus, TriggerType
from secure_dagu.runner.runner import execute
from tests.runner.harness import HOST_ENV, Children, Seen, make_request, run

SECRET = "hunter2-hunter2"
MASK = "*******"


async def test_a_step_sees_the_scope_and_nothing_of_this_process(tmp_path: Path) -> None:
    os.environ["ONLY_THE_WORKER_HAS_THIS"] = "1"  # the threat is exactly this: what the worker was started with
    try:
        seen = await run("env: [ROOT: r]\nsteps: [{name: a, env: [OWN: o], run: env}]", tmp_path)
    finally:
        del os.environ["ONLY_THE_WORKER_HAS_THIS"]
    names = {line.partition("=")[0] for line in seen.out("a").splitlines()}
    assert names == {
        *HOST_ENV, "ROOT", "OWN", "PWD", "DAG_NAME", "DAG_RUN_ID", "DAG_RUN_LOG_FILE", "DAG_RUN_WORK_DIR",
        "DAG_RUN_STEP_NAME", "DAG_RUN_STEP_STDOUT_FILE", "DAG_RUN_STEP_STDERR_FILE", "DAGU_OUTPUT_FILE",
        "DAGU_EXECUTABLE", "_DAGU_INTERNAL_RUN",
    }  # fmt: skip


async def test_a_dotenv_file_cannot_reach_the_environment_of_this_process(tmp_path: Path) -> None:
    """python-dotenv expands `${…}` from `os.environ`, which would hand the worker's own variables to a step."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".env").write_text("A=1\nB=${A}2\nC=${PYTEST_CURRENT_TEST}\nD=$A\n")
    seen = await run("steps: [{name: a, run: echo $A $B $C $D}]", tmp_path)
    assert seen.out("a") == "1 12 ${PYTEST_CURRENT_TEST} 1\n"


async def test_parameters_reach_text_environment_and_document(tmp_path: Path) -> None:
    text = (
        "params: [{name: who, default: x}, {name: n, default: '5'}]\nsteps: [{name: a, run: 'echo ${params.who} $n'}]"
    )
    seen = await run(text, tmp_path, params="who=bob")
    assert seen.out("a") == "bob 5\n"
    assert seen.final["paramsList"] == ["who=bob", "n=5"]
    assert seen.final["params"] == "who=bob n=5"


async def test_outputs_are_read_by_the_steps_that_depend_on_them(tmp_path: Path) -> None:
    text = r"""
steps:
  - name: a
    id: a
    output: OUT
    outputs: [{name: v}, {name: j, type: json}]
    run: |
      printf 'v<<E\none=1\ntwo\nE\nj={"k":1}\n' > $DAGU_OUTPUT_FILE
      echo hi
  - name: b
    depends: a
    run: |
      printf '%s|' "${steps.a.outputs.v}" "$OUT" "${a.output}" "${a.exit_code}" "${a.outputs.v}"
  - {name: c, depends: b, run: 'cat ${a.stdout}; echo $OUT'}
  - {name: stranger, run: 'echo "[$OUT]"'}
"""
    seen = await run(text, tmp_path)
    assert seen.status is RunStatus.SUCCEEDED, seen.details()
    assert seen.out("b") == "one=1\ntwo|hi|hi|0|one=1\ntwo|"
    assert seen.out("c") == "hi\nhi\n"
    assert seen.out("stranger") == "[]\n"
    node = seen.details()["a"]
    assert node["outputVariables"] == {"OUT": "OUT=hi"}
    assert json.loads(node["stepOutputsValue"]) == {"v": "one=1\ntwo", "j": '{"k":1}'}


async def test_a_mapping_of_outputs_is_published(tmp_path: Path) -> None:
    text = """
steps:
  - name: a
    id: a
    run: "echo '{\\"v\\":{\\"x\\":3}}'"
    output: {n: {from: stdout, decode: json, select: .v.x}, lit: 7}
  - {name: w, id: w, action: outputs.write, with: {values: {k: v}}}
  - {name: b, depends: [a, w], run: 'echo ${a.output.n} ${a.output.lit} ${w.outputs.k}'}
"""
    assert (await run(text, tmp_path)).out("b") == "3 7 v\n"


async def test_outputs_are_read_from_stderr_and_files(tmp_path: Path) -> None:
    text = """
steps:
  - name: a
    id: a
    run: "echo warn >&2; echo out; echo '{\\"n\\":[5]}' > r.json"
    output: {e: {from: stderr}, o: {from: stdout}, f: {from: file, path: r.json, decode: json, select: '.n[0]'}}
  - {name: b, depends: a, run: 'echo ${a.output.e} ${a.output.o} ${a.output.f}'}
  - {name: c, run: 'true', output: {f: {from: file, path: missing}}}
"""
    seen = await run(text, tmp_path)
    assert seen.out("b") == "warn out 5\n"
    assert "missing" in seen.details()["c"]["error"]


async def test_a_step_without_output_has_an_empty_log_that_others_can_read(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, id: a, run: 'true'}, {name: b, depends: a, run: 'cat ${a.stdout}'}]", tmp_path)
    assert seen.status is RunStatus.SUCCEEDED
    assert not seen.sizes.keys() & {("a", 1), ("a", 2)}, "a stream without bytes is not announced"


async def test_captured_output_has_a_limit(tmp_path: Path) -> None:
    text = "max_output_size: 10\nsteps: [{name: a, output: O, run: echo 12345678901}]"
    seen = await run(text, tmp_path)
    assert "max_output_size" in seen.details()["a"]["error"]
    assert seen.out("a") == "12345678901\n", "the log keeps everything"


async def test_every_missing_folder_of_a_working_directory_is_made_for_owner_and_group(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, working_dir: one/two, run: pwd}]", tmp_path)
    made = Path(seen.out("a").strip())
    assert [oct(folder.stat().st_mode & 0o777) for folder in (made, made.parent)] == ["0o750", "0o750"]


async def test_working_directories_are_made_and_nested(tmp_path: Path) -> None:
    seen = await run("working_dir: top\nsteps: [{name: a, run: pwd}, {name: b, working_dir: sub, run: pwd}]", tmp_path)
    assert seen.out("a") == f"{tmp_path}/work/top\n"
    assert seen.out("b") == f"{tmp_path}/work/top/sub\n"


async def test_streams_go_to_files_and_artifacts_too(tmp_path: Path) -> None:
    text = """
steps:
  - {name: a, run: "echo out; echo err >&2", stdout: logs/out.txt, stderr: {artifact: sub/err.txt}}
  - {name: b, depends: a, run: "echo more", stdout: logs/out.txt}
"""
    seen = await run(text, tmp_path)
    assert (tmp_path / "work" / "logs" / "out.txt").read_text() == "out\nmore\n"
    assert (tmp_path / "artifacts" / "sub" / "err.txt").read_text() == "err\n"
    assert seen.out("a") == "out\n"
    assert seen.final["archiveDir"] == str(tmp_path / "artifacts")


async def test_merged_logs_keep_the_order_of_writing(tmp_path: Path) -> None:
    seen = await run("log_output: merged\nsteps: [{name: a, run: 'echo 1; echo 2 >&2; echo 3'}]", tmp_path)
    assert seen.out("a") == "1\n2\n3\n"
    assert "a.stderr.log" not in seen.logs


async def test_merged_logs_leave_each_stream_what_is_taken_of_it(tmp_path: Path) -> None:
    """What a step hands on is its stdout, however its logs are kept."""
    text = """
log_output: merged
steps:
  - {name: a, id: a, run: "echo out; echo err >&2", output: X, stdout: out.txt, stderr: err.txt}
  - {name: b, id: b, run: "echo '[1]'; echo err >&2", output_schema: {type: array}, output: {e: {from: stderr}}}
  - {name: c, depends: [a, b], run: "echo ${X} ${b.output.e} $(cat out.txt err.txt)"}
"""
    seen = await run(text, tmp_path)
    assert seen.out("c") == "out err out err\n"
    assert sorted(seen.out("a").split()) == ["err", "out"]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("echo before $S after", f"before {MASK} after\n"),
        ("printf hunter2; sleep 0.02; printf -- '-hunter2 end'", f"{MASK} end"),
        ("printf hunter2-hunter", "hunter2-hunter"),
        ("""printf '{"p":"%s"}' "$S" """, f'{{"p":"{MASK}"}}'),
    ],
)
async def test_secrets_are_masked_wherever_they_are_kept(tmp_path: Path, command: str, shown: str) -> None:
    children = Children(secrets={"team/s": SECRET})
    text = f"""
secrets: [{{name: S, ref: team/s}}]
steps:
  - name: a
    id: a
    output: O
    stdout: copy.txt
    run: |
      {command}
  - {{name: b, depends: a, run: 'test "$O" = "$(cat raw)" || echo differs; echo ${{a.output}} >&2'}}
  - {{name: raw, run: 'true'}}
"""
    seen = await run(text, tmp_path, children=children)
    assert seen.out("a") == shown
    assert (tmp_path / "work" / "copy.txt").read_text() == shown
    for name, data in seen.logs.items():
        assert SECRET.encode() not in data, name
    assert SECRET not in json.dumps(seen.documents)


async def test_a_secret_reaches_later_steps_as_it_is(tmp_path: Path) -> None:
    children = Children(secrets={"team/s": SECRET})
    text = (
        "secrets: [{name: S, ref: team/s}]\n"
        "steps: [{name: a, output: O, run: 'echo $S'}, {name: b, depends: a, run: 'test $O = $S && echo same'}]"
    )
    seen = await run(text, tmp_path, children=children)
    assert seen.out("b") == "same\n"
    assert seen.details()["a"]["outputVariables"] == {"O": f"O={MASK}"}


async def test_published_json_stays_json_when_a_secret_in_it_is_masked(tmp_path: Path) -> None:
    children = Children(secrets={"s": 'a"b\\c'})
    text = (
        "secrets: [{name: S, ref: s}]\n"
        "steps: [{name: a, action: outputs.write, with: {values: {k: 'x $S y', n: {deep: [$S]}}}}]"
    )
    seen = await run(text, tmp_path, children=children)
    assert json.loads(seen.details()["a"]["outputsValue"]) == {"k": f"x {MASK} y", "n": {"deep": [MASK]}}


async def test_the_run_log_is_json_lines_without_the_text_of_commands(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, run: echo canary; exit 3}]", tmp_path)
    lines = [json.loads(line) for line in seen.logs["scheduler.log"].splitlines()]
    assert {"time", "level", "msg", "dag", "run-id", "worker-id", "attempt-id"} <= lines[0].keys()
    assert any(line.get("step") == "a" and line.get("err") == "exit status 3" for line in lines)
    assert b"canary" not in seen.logs["scheduler.log"]


async def test_documents_carry_their_identity(tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, run: 'true'}]", tmp_path, labels="team=a,x")
    for document in seen.documents:
        assert document["name"] == "demo"
        assert document["dagRunId"] == "run-1"
        assert document["root"] == {"name": "demo", "id": "run-1"}
        assert document["attemptKey"] == document["claimKey"]
        assert document["labels"] == ["team=a", "x"]
        assert document["pendingStepRetries"] is None
    assert [document["status"] for document in seen.documents[:-1]] == [1] * (len(seen.documents) - 1)
    assert seen.final["finishedAt"].endswith("Z")


async def test_outputs_are_decoded_selected_and_checked(tmp_path: Path) -> None:
    text = """
steps:
  - name: a
    id: a
    run: "printf 'k: {n: [1, 2]}\\nt: yes\\n'"
    output: {n: {decode: yaml, select: '.k.n[1]'}, all: {decode: yaml}, lit: {deep: [$DAG_NAME]}}
  - {name: b, id: b, run: "echo '{\\"x\\":1}'", stdout: {outputs: {decode: json}}}
  - {name: c, id: c, run: "echo '{\\"x\\":1}'", stdout: {outputs: {field: whole, decode: json, select: .x}}}
  - {name: d, depends: [a, b, c], run: 'echo ${a.output.n} ${a.output.all.t} ${a.output.lit.deep[0]} ${b.outputs.x}'}
  - {name: e, run: "echo '{\\"x\\":1}'", output_schema: {type: object, required: [y]}}
  - {name: f, run: "echo '[1]'", output_schema: {type: array}}
  - {name: g, run: "echo no json", output_schema: {type: object}}
  - {name: h, run: "echo 1", output: {v: {decode: json, select: 'range(10)'}}}
"""
    seen = await run(text, tmp_path)
    assert seen.out("d") == "2 yes demo 1\n"
    assert json.loads(seen.details()["c"]["outputsValue"]) == {"whole": 1}
    words = {name: node["word"] for name, node in seen.details().items()}
    assert words == {**dict.fromkeys("abcdf", "succeeded"), **dict.fromkeys("egh", "failed")}
    assert "'y' is a required property" in seen.details()["e"]["error"]
    assert "not JSON" in seen.details()["g"]["error"]
    assert "no jq path" in seen.details()["h"]["error"]


async def test_a_schema_leads_nowhere_outside(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: echo 1, output_schema: {$ref: 'http://127.0.0.1:9/s.json'}}]"
    seen = await run(text, tmp_path)
    assert "cannot be followed" in seen.details()["a"]["error"]


async def test_a_node_shows_what_really_ran_and_no_script(tmp_path: Path) -> None:
    text = r"""
params: [{name: p, default: "x\ny"}, {name: q, default: v}]
secrets: [{name: S, ref: s}]
steps:
  - {name: a, run: ["echo ${params.q} ${env.S}", "true"]}
  - {name: script, run: "echo canary\nnosuchcommand-canary"}
  - {name: no, run: "echo canary ${params.p}"}
  - {name: exec, action: exec, with: {command: echo, args: ["$DAG_NAME", 1]}}
"""
    seen = await run(text, tmp_path, children=Children(secrets={"s": SECRET}))
    nodes = {name: node["step"].get("commands") for name, node in seen.details().items()}
    assert nodes == {
        "a": [
            {"command": "echo", "cmdWithArgs": f"echo v {MASK}"},
            {"command": "true", "cmdWithArgs": "true"},
        ],
        "script": None,
        "no": [],
        "exec": [{"command": "echo", "cmdWithArgs": "echo demo 1"}],
    }
    error = seen.details()["script"]["error"]
    assert error.splitlines()[:2] == ["exit status 127", "recent stderr (tail):"]
    assert "2" in error.splitlines()[2]
    assert "secure-dagu-" not in error


async def test_the_error_of_a_command_ends_with_what_it_said(tmp_path: Path) -> None:
    text = "steps: [{name: a, run: 'seq 1 30 >&2; exit 7'}, {name: b, run: 'kill -9 $$'}]"
    seen = await run(text, tmp_path)
    lines = seen.details()["a"]["error"].splitlines()
    assert lines == ["exit status 7", "recent stderr (tail):", *(str(n) for n in range(21, 31))]
    assert seen.details()["b"]["error"] == "signal: killed (SIGKILL)"
    assert seen.final["error"] == "a: exit status 7"


async def test_a_run_on_the_authors_host_finds_files_beside_the_definition(tmp_path: Path) -> None:
    home = tmp_path / "dags"
    home.mkdir()
    (home / ".env").write_text("FROM_FILE=yes\n")
    (home / "key").write_text("s3cret-key")
    text = (
        "working_dir: sub\nsecrets: [{name: K, provider: file, key: key}, {name: E, provider: env, key: ONLY_HERE}]\n"
        "steps: [{name: a, run: 'pwd; echo $FROM_FILE; test \"$K\" = s3cret-key && test $E = e-value'}]"
    )
    request = replace(make_request(text, tmp_path, process_env={"ONLY_HERE": "e-value"}), dag_dir=home)
    seen = Seen()
    await execute(request, seen, Children(), stop=asyncio.Event())
    assert seen.status is RunStatus.SUCCEEDED, seen.details()
    assert (tmp_path / "logs" / "a.stdout.log").read_text() == f"{home}/sub\nyes\n"


async def test_logs_have_the_names_of_a_run_on_this_host(tmp_path: Path) -> None:
    request = make_request(
        "steps: [{name: a b, run: test -f $DAG_RUN_STEP_STDERR_FILE && echo x},"
        " {name: m, log_output: merged, run: echo}]",
        tmp_path,
    )
    folders = replace(request.folders, run_log=tmp_path / "logs" / "run.log", log_suffix="20260102.x")
    seen = Seen()
    await execute(replace(request, folders=folders), seen, Children(), stop=asyncio.Event())
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "a_b.20260102.x.err", "a_b.20260102.x.out", "m.20260102.x.log", "run.log",
    ]  # fmt: skip
    assert seen.final["log"] == str(tmp_path / "logs" / "run.log")
    assert seen.details()["m"]["stdout"] == seen.details()["m"]["stderr"]
    assert [line[1] for line in seen.lines][:2] == ["DAG run started", "Step started"]
    assert seen.lines[1][2]["step"] == "a b"


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("${context.step.name}", "a"),
        ("${context.paths.step_stdout_file}", "{base}/logs/a.stdout.log"),
        ("${context.trigger.type}", "scheduler"),
        ("${context.run.scheduled_at}", "2026-01-02T02:04:05Z"),
        ("${context.profile.name}", "prod"),
        ("$FROM_PROFILE", "p"),
        ("${context.pushback.iteration}", "${context.pushback.iteration}"),
    ],
)
async def test_what_a_run_tells_its_steps(tmp_path: Path, reference: str, value: str) -> None:
    text = f"env: [FROM_PROFILE: env]\nsteps: [{{name: a, action: log.write, with: {{message: '{reference}'}}}}]"
    request = make_request(text, tmp_path, schedule_time="2026-01-02T03:04:05+01:00", profile_name="prod")
    request = replace(request, trigger=TriggerType.SCHEDULER, profile_env={"FROM_PROFILE": "p"})
    await execute(request, Seen(), Children(), stop=asyncio.Event())
    assert (tmp_path / "logs" / "a.stdout.log").read_text() == value.replace("{base}", str(tmp_path)) + "\n"
