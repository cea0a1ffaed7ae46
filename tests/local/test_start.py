"""`start` and its family: exit codes, records, ids, what is refused before anything is recorded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local.command import Host

OK = "steps:\n  - {id: a, run: echo hello}\n"
OUTCOMES = [
    ("a step fails", "steps: [{id: a, run: 'true'}, {id: b, run: exit 3, depends: a}, "
     "{id: c, run: 'true', depends: b}, {id: d, run: 'true'}]", "Failed", 1),
    ("an accepted failure", "steps: [{id: a, run: 'true'}, {id: b, run: exit 3, continue_on: failed}, "
     "{id: c, run: 'true', depends: b}]", "Partially Succeeded", 1),
    ("a failure that counts as success", "steps: [{id: b, run: exit 3, continue_on: {failure: true, "
     "mark_success: true}}]", "Succeeded", 0),
    ("the only step fails acceptably", "steps: [{id: a, run: exit 3, continue_on: failed}]", "Failed", 1),
    ("a skipped step and its follower", "steps: [{id: a, run: 'true', preconditions: 'false'}, "
     "{id: b, run: 'true', depends: a}]", "Succeeded", 0),
    ("an unmet precondition of the DAG", "preconditions: 'false'\nsteps: [{id: a, run: 'true'}]", "Aborted", 0),
    ("init fails", "handler_on: {init: {run: exit 2}}\nsteps: [{id: a, run: 'true'}]", "Aborted", 1),
    ("the success handler fails", "handler_on: {success: {run: exit 2}}\nsteps: [{id: a, run: 'true'}]", "Failed", 1),
    ("a step takes too long", "steps: [{id: a, run: sleep 20, timeout_sec: 1}]", "Failed", 1),
    ("a step waits for approval", "steps: [{id: a, run: 'true', approval: {prompt: ok?}}, "
     "{id: b, run: 'true', depends: a}]", "Waiting", 0),
    ("nothing to do", "steps: []", "Succeeded", 0),
]  # fmt: skip


@pytest.mark.parametrize(("what", "text", "title", "code"), OUTCOMES, ids=[what for what, *_ in OUTCOMES])
def test_what_a_run_amounts_to_is_printed_and_is_the_exit_code(
    what: str, text: str, title: str, code: int, host: Host
) -> None:
    done = host.run("start", host.file("flow.yaml", text))
    assert (done.code, done.out.splitlines()[-1]) == (code, f"Result: {title}"), done
    assert done.out.startswith(f"{title} - ")
    assert ("Error: failed to execute the dag-run flow (dag-run ID: " in done.err) is (code == 1)


def test_the_log_of_a_run_goes_to_stderr_and_its_summary_to_stdout(host: Host) -> None:
    done = host.run("start", host.file("flow.yaml", OK))
    assert re.search(r'^time=\S+Z level=INFO msg="DAG run started" dag=flow run-id=\w{22} ', done.err, re.MULTILINE)
    assert 'msg="Step started" dag=flow' in done.err
    assert re.search(r'msg="DAG run finished".* status=succeeded$', done.err, re.MULTILINE)
    assert "hello" in done.out
    assert "hello" not in done.err


def test_quiet_says_nothing_and_the_exit_code_tells(host: Host) -> None:
    done = host.run("start", "-q", host.file("flow.yaml", "steps: [{run: exit 3}]"))
    assert (done.code, done.out, done.err) == (1, "", "")


def test_parameters_come_as_a_text_or_as_words_which_win(host: Host) -> None:
    flow = host.file("flow.yaml", "params: [{who: nobody}]\nsteps: [{id: a, run: 'echo [${params.who}]'}]")
    assert "[nobody]" in host.ok("start", flow)
    assert "[a b]" in host.ok("start", "-p", 'who="a b"', flow)
    assert "[c]" in host.ok("start", "-p", "who=a", flow, "--", "who=c")
    assert "[d  e]" in host.ok("start", flow, "--", "who=d  e")
    assert '[say "x"]' in host.ok("start", flow, "--", 'who=say "x"')
    assert "[j]" in host.ok("start", flow, "--", '{"who": "j"}')


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        ([], OK, "requires at least 1 arg(s), only received 0"),
        (["flow.yaml", "a", "b"], OK, "unexpected arguments after DAG definition: a b (use '--' before parameters)"),
        (["nowhere"], OK, 'failed to load DAG from nowhere: failed to read file "'),
        (["flow.yaml", "-r", "a/b"], OK, "dag-run ID must only contain alphanumeric characters, dashes, and"),
        (["flow.yaml", "-r", "x" * 65], OK, "dag-run ID must be at most 64"),
        (["flow.yaml", "-N", "a b"], OK, 'invalid --name value "a b": a DAG\'s name is at most 40 letters'),
        (["flow.yaml", "-N", "x" * 41], OK, "invalid --name value"),
        (
            ["flow.yaml", "--trigger-type", "foo"],
            OK,
            'invalid trigger-type "foo": must be one of scheduler, manual, webhook, subdag, retry, catchup',
        ),
        (["flow.yaml", "--schedule-time", "noon"], OK, 'invalid --schedule-time value "noon": must be RFC 3339 format'),
        (["flow.yaml", "--", "extra=1"], "params: [{a: '1'}]\n" + OK, 'unknown parameter(s): "extra"'),
        (
            ["flow.yaml"],
            "params: [{name: a, required: true}, {name: b, required: true}]\n" + OK,
            "missing required parameters: a, b",
        ),
        (["flow.yaml", "--labels", "a,=b"], OK, "invalid label '=b'"),
        (["flow.yaml"], "steps: [{id: a, run: x, depends: b}, {id: b, run: x, depends: a}]", "cyclic"),
        (["flow.yaml"], "steps: [{id: a, rum: x}]", 'invalid keys: "rum"'),
        (["flow.yaml"], "steps: [", "yaml"),
        (["flow.yaml", "--nope"], OK, "unknown flag --nope"),
    ],
)
def test_what_cannot_be_run_is_said_in_an_error_and_nothing_is_recorded(
    words: list[str], text: str, said: str, host: Host
) -> None:
    host.file("flow.yaml", text)
    done = host.run("start", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ")
    assert said in done.err
    assert not (host.home / "data").exists()


def test_a_run_id_is_used_once(host: Host) -> None:
    flow = host.file("flow.yaml", OK)
    host.ok("start", "-r", "one", flow)
    done = host.run("start", "-r", "one", flow)
    assert done.code == 1
    assert "Error: local execution already exists: dag-run ID one already exists for DAG flow" in done.err
    assert len(host.attempts("flow")) == 1


def test_of_many_starts_with_one_id_exactly_one_runs(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("steps: [{run: echo x >> ran}]\nworking_dir: " + str(tmp_path))
    words = [sys.executable, "-m", "secure_dagu.cli.main", "start", "-r", "one", "flow.yaml"]

    def start(_: int) -> int:
        env = {"PATH": "/usr/bin:/bin", "DAGU_HOME": str(tmp_path / "home")}
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False).returncode

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(start, range(6))) == [0, 1, 1, 1, 1, 1]
    assert (tmp_path / "ran").read_text() == "x\n"


def test_the_folders_of_a_run_are_where_the_language_says(host: Host) -> None:
    flow = host.file("flow.yaml", "artifacts: {enabled: true}\nsteps:\n  - id: a\n    run: echo hi; pwd; "
                     "echo x > $DAG_RUN_ARTIFACTS_DIR/x.txt\n")  # fmt: skip
    host.ok("start", "-r", "run_1", flow)
    document = host.status("flow")
    node = document["nodes"][0]
    logs = host.home / "logs" / "flow"
    run = r"dag-run_\d{8}_\d{6}Z_run_1"
    assert re.fullmatch(rf"{logs}/{run}/dag-run_\d{{8}}\.\d{{6}}\.\d{{3}}\.run_1\.log", document["log"])
    assert re.fullmatch(
        rf"{logs}/{run}/run_\d{{8}}_\d{{6}}Z_[0-9a-f]{{6}}/a\.\d{{8}}\.\d{{6}}\.\d{{3}}\.run_1\.out", node["stdout"]
    )
    assert Path(node["stdout"]).read_text() == f"hi\n{document['workingDir']}\n"
    work = host.home / "data" / "dag-run-work" / "flow"
    assert re.fullmatch(rf"{work}/[a-z2-7]{{26}}/root", document["workingDir"])
    assert re.fullmatch(rf"{host.home}/data/artifacts/flow/{run}", document["archiveDir"])
    assert (Path(document["archiveDir"]) / "x.txt").read_text() == "x\n"


def test_commands_in_steps_find_the_same_home_and_settings(host: Host) -> None:
    (host.folder / "c.yaml").write_text("skip_examples: true\n")
    flow = host.file("flow.yaml", "working_dir: /\nsteps: [{id: a, run: 'echo $DAGU_HOME; echo [$DAGU_CONFIG]'}]\n")
    assert f"      {host.home}\n      []\n" in host.ok("start", flow)
    told = host.ok("start", "--dagu-home=rel", "-c", "c.yaml", flow)
    assert f"      {host.folder}/rel\n      [{host.folder}/c.yaml]\n" in told


def test_outputs_are_kept_beside_the_status(host: Host) -> None:
    host.ok("start", host.file("flow.yaml", "steps: [{id: a, run: echo 42, output: THE_ANSWER}]"))
    found = json.loads((host.attempts("flow")[0] / "outputs.json").read_text())
    assert found["outputs"] == {"theAnswer": "42"}
    assert found["metadata"]["dagName"] == "flow"


def test_a_run_starts_again_from_an_old_ones_definition_and_parameters(host: Host) -> None:
    flow = host.file("flow.yaml", "params: [{a: x}]\nsteps: [{id: a, run: 'echo [${params.a}]'}]")
    host.ok("start", "-r", "old", flow, "--", "a=kept")
    host.file("flow.yaml", "steps: [{run: exit 9}]")
    assert "[kept]" in host.ok("start", "--from-run-id", "old", "-r", "new", flow)
    assert host.run("start", "--from-run-id", "gone", flow).code == 1
    assert host.run("start", "--from-run-id", "old", flow, "--", "a=1").code == 1


def test_what_the_command_line_says_wins_over_an_old_run(host: Host, tmp_path: Path) -> None:
    flow = host.file("flow.yaml", "steps: [{id: a, run: pwd}]")
    host.ok("start", "-r", "old", "-N", "other", "--labels", "a", flow)
    words = ("--from-run-id", "old", "--labels", "b", "--default-working-dir", str(tmp_path), "--worker-id", "w1")
    for called in ((flow, "-N", "other"), ("other",), ("other", "-N", "third")):
        assert f"    {tmp_path}\n" in host.ok("start", *words, *called)
    assert [len(host.attempts(name)) for name in ("flow", "other", "third")] == [0, 3, 1]
    document = host.status("third")
    assert (document["name"], document["labels"], document["workerId"]) == ("third", ["a", "b"], "w1")


def test_handlers_that_are_defined_are_shown_whether_they_ran_or_not(host: Host) -> None:
    text = "handler_on: {failure: {run: echo f}, success: {run: echo s}}\n" + OK
    flow = host.file("flow.yaml", text)
    for shown in (host.ok("start", flow), host.ok("status", flow)):
        assert re.search(r"^├─onSuccess \(< 1s\) \[succeeded\]$", shown, re.MULTILINE)
        assert "\n└─onFailure\n  └─echo f\n" in shown
    host.ok("enqueue", flow)
    assert "├─onSuccess\n│ └─echo s\n│ \n└─onFailure\n  └─echo f\n" in host.ok("status", flow)


def test_nobody_has_to_read_what_a_run_says(tmp_path: Path) -> None:
    """A closed pipe (`2>&1 | head -1`), a full disk: the steps run all the same, and the exit code is theirs."""
    (tmp_path / "flow.yaml").write_text("working_dir: .\nsteps: [{id: a, run: echo x >> ran; exit 3}]")
    words = [sys.executable, "-m", "secure_dagu.cli.main", "start", "flow.yaml"]
    env = {"PATH": "/usr/bin:/bin", "DAGU_HOME": str(tmp_path / "home")}
    reading, closed = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full, open(closed, "w") as pipe:
        for out, err in ((subprocess.PIPE, pipe), (subprocess.PIPE, full), (pipe, subprocess.PIPE), (pipe, pipe)):
            done = subprocess.run(words, cwd=tmp_path, env=env, stdout=out, stderr=err, text=True, check=False)
            assert done.returncode == 1
            assert out != subprocess.PIPE or "error: exit status 3" in done.stdout
            assert err != subprocess.PIPE or done.stderr.endswith("): exit status 3\n")
    assert (tmp_path / "ran").read_text() == "x\n" * 4


def test_output_is_utf8_whatever_the_locale_says_and_arguments_have_to_be(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("steps: [{id: a, run: 'printf \"\\303\\274\"'}]")
    words = [sys.executable, "-m", "secure_dagu.cli.main", "start", "flow.yaml"]
    env = {"PATH": "/usr/bin:/bin", "DAGU_HOME": str(tmp_path / "home"), "LC_ALL": "POSIX", "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, "    \u00fc\n".encode() in done.stdout, "└─a (".encode() in done.stdout) == (0, True, True)
    odd = subprocess.run([*words, "--", b"a=\xff"], cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False)
    assert (odd.returncode, odd.stdout) == (1, b"")
    assert odd.stderr.startswith(b"Error: an argument is not UTF-8 text: a=")
    assert len(list((tmp_path / "home").glob("data/dag-runs/flow/dag-runs/*/*/*/dag-run_*"))) == 1


@pytest.mark.parametrize("meant", ["folder", "./folder", "./gone.yaml", "link.yaml"])
def test_what_is_no_file_is_said_of_the_path_that_was_meant(meant: str, host: Host) -> None:
    (host.folder / "folder").mkdir()
    (host.folder / "link.yaml").symlink_to("nowhere")
    done = host.run("start", meant)
    assert done.err.startswith(f'Error: failed to load DAG from {meant}: failed to read file "{host.folder / meant}": ')
    (host.home / "dags").mkdir(parents=True)
    (host.home / "dags" / "folder.yaml").write_text(OK)
    assert host.run("start", meant).code == (0 if meant.endswith("folder") else 1)


def test_dry_shows_the_steps_as_succeeded_and_leaves_nothing(host: Host) -> None:
    flow = host.file("flow.yaml", "steps: [{id: a, run: touch /tmp/never-$$}, {id: b, run: exit 3, depends: a}]")
    out = host.ok("dry", flow)
    assert out.count("[succeeded]") == 2
    assert out.endswith("Result: Succeeded\n")
    assert not (host.home / "data").exists()
    cyclic = host.file("c.yaml", "steps: [{id: a, run: x, depends: a}]")
    done = host.run("dry", cyclic)
    assert (done.code, done.out) == (1, "")
    assert "failed to setup execution plan: cyclic plan detected" in done.err


def test_dry_tells_that_a_secret_is_missing_before_a_run_does(host: Host) -> None:
    flow = host.file("flow.yaml", "secrets: [{name: T, provider: file, key: token}]\nsteps: [{id: a, run: 'true'}]")
    done = host.run("dry", flow)
    assert (done.code, done.out) == (1, "")
    assert "secret T" in done.err
    host.file("token", "canary")
    assert "canary" not in host.ok("dry", flow)


def test_exec_runs_a_command_without_a_shell_unless_told(host: Host) -> None:
    out = host.ok("exec", "--env", "A=1 $HOME", "--", "printf", "%s|", "$A", "${params.x}", "a b")
    assert "$A|${params.x}|a b|" in out
    assert "dag: exec-printf" in out
    assert "main (" in out
    assert "1 $HOME" in host.ok("exec", "--env", "A=1 $HOME", "--shell", "sh", "--", "echo", '"$A"')
    assert host.run("exec", "--", "false").code == 1
    assert host.run("exec").code == 1


def test_exec_runs_in_the_current_directory_or_another(host: Host, tmp_path: Path) -> None:
    assert str(host.folder) in host.ok("exec", "--", "pwd")
    assert f"{tmp_path}\n" in host.ok("exec", "--workdir", str(tmp_path), "--", "pwd").replace("    ", "")


@pytest.mark.parametrize(
    "called", ["./parts/kid.yaml", "parts/kid.yaml", "{folder}/parts/kid.yaml", "known", "deep/kid"]
)
def test_a_child_is_called_as_the_command_line_calls_a_workflow(host: Host, called: str) -> None:
    """Section 3.14: a path or a name; it is called by its file, and what is beside the file is found."""
    kid = "dotenv: beside.env\nsteps: [{run: echo $BESIDE, output: SAID}]\n"
    for place in (host.folder / "parts", host.home / "dags", host.home / "dags" / "deep"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "beside.env").write_text("BESIDE=found\n")
        (place / "kid.yaml").write_text(kid)
    (host.home / "dags" / "known.yaml").write_text(kid)
    target = called.format(folder=host.folder)
    host.file("flow.yaml", f"steps: [{{name: a, action: dag.run, with: {{dag: '{target}'}}}}]")
    host.ok("start", "flow.yaml")
    log = Path(host.status("flow")["nodes"][0]["stdout"])
    told = json.loads(log.read_text())
    assert (told["name"], told["outputs"]) == ("known" if called == "known" else "kid", {"SAID": "found"})
