"""`validate` at the command line: what it prints, and what scripts look for (workflow language, 1.2, 7)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from secure_dagu.cli.main import main

Capture = pytest.CaptureFixture[str]
STEP = "steps:\n  - id: a\n    run: echo\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DAGU_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGU_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def validate(capsys: Capture, text: str, *more: str, code: int) -> tuple[str, str]:
    Path("flow.yaml").write_text(text)
    assert main(["validate", *more, "flow.yaml"]) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_a_valid_file_is_met_with_silence(capsys: Capture, home: Path) -> None:
    assert validate(capsys, STEP, code=0) == ("", "")
    assert not (home / "data").exists()


def test_an_invalid_file_is_named_as_given_with_one_line_for_each_problem(capsys: Capture) -> None:
    out, err = validate(capsys, "steps:\n  - id: a\n    rum: echo\nnonsense: 1\n", code=1)
    assert out == ""
    head, *lines = err.splitlines()
    assert head == "Error: Validation failed for flow.yaml"
    assert len(lines) >= 2
    assert all(re.match(r"- .*/flow\.yaml:\d+:\d+: ", line) for line in lines)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["empty"]),
        ("---\n", ["empty"]),
        ("name: x\n" + STEP, ["entrypoint", "name"]),
        ("description: x\n", ["steps"]),
        ("steps: {a: {run: echo}}\n", ["steps", "sequence"]),
        ("steps: []\n", ["steps", "non-empty"]),
        (STEP + "---\n", ["document 2", "empty"]),
        (STEP + "---\n" + STEP, ["document 2", "name"]),
        (STEP + "---\nname: x\n" + STEP + "---\nname: x\n" + STEP, ["x", "unique"]),
        (STEP + "nonsense: 1\n", ["invalid keys", "nonsense"]),
        (STEP + "steps: []\n", ["already defined"]),
        ("steps: [\n", ["yaml", "flow.yaml"]),
        (STEP + "workingDir: /x\n", ["use snake_case keys", "working_dir"]),
        (STEP + "  - id: a\n    run: echo\n", ["duplicate step ID"]),
        (STEP + "    depends: nope\n", ["depends on non-existent step"]),
        (STEP + "    parallel: [1]\n", ["parallel"]),
        (STEP + "    preconditions: [{condition: x, command: y}]\n", ["preconditions", "command"]),
        (STEP + "schedule: '@hourly'\n", ["invalid cron expression"]),
        (STEP + "params: [{name: 1x, default: a}]\n", ["params", "1x"]),
        (STEP + "env: text\n", ["env", "map or array"]),
        (STEP + "secrets: [{name: DAGU_X, provider: env, key: y}]\n", ["secrets", "must not start with DAGU_"]),
    ],
)  # fmt: skip
def test_the_stable_fragments_are_there(capsys: Capture, text: str, fragments: list[str]) -> None:
    _, err = validate(capsys, text, code=1)
    assert err.startswith("Error: Validation failed for flow.yaml\n- ")
    assert [fragment for fragment in fragments if fragment not in err] == []
    assert "usage" not in err.lower()


def test_a_cycle_is_not_what_validate_looks_for(capsys: Capture) -> None:
    text = "steps:\n  - {id: a, run: echo, depends: b}\n  - {id: b, run: echo, depends: a}\n"
    assert validate(capsys, text, code=0) == ("", "")


def test_nothing_is_executed(capsys: Capture) -> None:
    text = (
        "env: [A: $(touch canary)]\nparams: [{name: p, eval: '`touch canary`'}]\n"
        "preconditions: touch canary\ndotenv: missing.env\nsecrets: [{name: S, provider: file, key: /missing}]\n"
        f"{STEP}    preconditions: touch canary\n"
    )
    assert validate(capsys, text, code=0) == ("", "")
    assert not Path("canary").exists()


def test_references_that_stay_as_they_are_are_told_as_log_lines(capsys: Capture) -> None:
    text = "steps:\n  - id: a\n    run: echo ${steps.zz.outputs.q} ${params.p}\n"
    out, err = validate(capsys, text, code=0)
    assert out == ""
    assert re.fullmatch(
        r'time=\S+Z level=WARN msg="\$\{steps\.zz\.outputs\.q\} was left unchanged because .* when steps\[0\]\.run was '
        r'evaluated\." file=flow\.yaml reason=unknown_step_id\n',
        err,
    )
    _, more = validate(capsys, text, "--show-unresolved", code=0)
    assert "level=INFO" in more
    assert "${params.p}" in more
    assert validate(capsys, text, "--show-unresolved", "--quiet", code=0) == ("", "")


def test_json_is_one_document_with_places(capsys: Capture) -> None:
    out, err = validate(capsys, "steps:\n  - id: a\n    rum: ${params.p}\n", "--json", code=1)
    found = json.loads(out)
    assert err == ""
    assert (found["file"], found["valid"], found["warnings"], found["notices"]) == ("flow.yaml", False, [], [])
    wrong = next(item for item in found["errors"] if "rum" in item["message"])
    assert (Path(wrong["file"]).name, wrong["line"], wrong["column"], wrong["nearest"]) == ("flow.yaml", 3, 5, "run")
    out, _ = validate(capsys, "steps: [a\n", "--json", code=1)
    assert json.loads(out)["errors"][0]["expected"] == "',' or ']'"
    out, _ = validate(capsys, "steps:\n  - id: a\n    run: ${steps.z.outputs.q}\n", "--json", code=0)
    assert json.loads(out)["notices"][0]["reason"] == "unknown_step_id"


def test_wrong_usage_and_missing_files(capsys: Capture) -> None:
    assert main(["validate"]) == 1
    assert capsys.readouterr() == ("", "Error: accepts 1 arg(s), received 0\n")
    assert main(["validate", "nope.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: Validation failed for nope.yaml\n- failed to read file ")
    assert told.endswith('nope.yaml": no such file or directory\n')


def test_control_characters_of_a_file_cannot_move_the_cursor(capsys: Capture) -> None:
    _, err = validate(capsys, 'steps:\n  - {id: a, "x\\e[2J": 1}\n', code=1)
    assert "\x1b" not in err
