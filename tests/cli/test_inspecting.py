"""Commands that look at the runs of this host, over records as they lie on disk."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.cli.main import main
from secure_dagu.run.model import AttemptId, DagRunRef, RunStatus
from secure_dagu.store.records import Attempt, Records

Capture = pytest.CaptureFixture[str]


class Home:
    """A host with records."""

    def __init__(self, path: Path, capsys: Capture) -> None:
        self.path = path
        self.dags = path / "dags"
        self.dags.mkdir(parents=True)
        self.records = Records(path / "data" / "dag-runs")
        self._capsys = capsys

    def dag(self, name: str, text: str = "steps: [{id: a, run: echo hi}]\n") -> Path:
        path = self.dags / f"{name}.yaml"
        path.write_text(text)
        return path

    def run(
        self,
        name: str,
        run_id: str,
        status: RunStatus = RunStatus.SUCCEEDED,
        *,
        ago: timedelta = timedelta(),
        **more: Any,
    ) -> Attempt:
        """Record a run that began `ago` and took 150 seconds."""
        at = datetime.now(UTC).replace(microsecond=0) - ago
        record = self.records.create(DagRunRef(name, run_id), now=at)
        attempt = record.add_attempt(AttemptId("abc123"), now=at)
        began, ended = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (at, at + timedelta(seconds=150)))
        values = {
            "name": name, "dagRunId": run_id, "attemptId": "abc123", "status": int(status), "workerId": "local",
            "startedAt": began, "finishedAt": ended if status.is_terminal else "", "nodes": [], **more,
        }  # fmt: skip
        attempt.write(json.dumps(values))
        return attempt

    def call(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Run a command; return its standard output and standard error."""
        assert main(words) == code
        told = self._capsys.readouterr()
        return told.out, told.err

    def ids(self, *words: str) -> list[str]:
        """Return the run ids that `history` lists."""
        return [row["dagRunId"] for row in json.loads(self.call("history", "--format=json", *words)[0])]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Home:
    for name in ("DAGU_CONFIG", "DAGU_DEBUG", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DAGU_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home", capsys)


# ── history ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_history_is_a_table_with_the_newest_run_first(home: Home) -> None:
    home.run("etl", "r1", ago=timedelta(hours=1), params="a=1")
    home.run("etl-long", "r22", RunStatus.PARTIALLY_SUCCEEDED)
    out, err = home.call("history")
    lines = out.splitlines()
    assert lines[0] == "DAG NAME  RUN ID  STATUS               STARTED (UTC)        DURATION  PARAMS"
    assert lines[1].startswith("etl-long  r22     Partially Succeeded  ")
    assert lines[2].startswith("etl       r1      Succeeded            ")
    assert [line.split()[-2:] for line in lines[1:]] == [["2m30s", "-"], ["2m30s", "a=1"]]
    assert err == ""


def test_history_as_csv_has_the_same_header_and_values(home: Home) -> None:
    home.run("etl", "r1", params='x="a,b"')
    out, _ = home.call("history", "-f", "csv")
    header, row = csv.reader(io.StringIO(out))
    assert header == ["DAG NAME", "RUN ID", "STATUS", "STARTED (UTC)", "DURATION", "PARAMS"]
    assert [*row[:3], *row[4:]] == ["etl", "r1", "Succeeded", "2m30s", 'x="a,b"']
    assert out.splitlines()[1].endswith('"x=""a,b"""')


def test_history_as_json_escapes_what_is_special_in_html(home: Home) -> None:
    run = home.run("etl", "r1", RunStatus.FAILED, labels=["team=data"], error="a & b", params="<x>").status()
    home.run("etl", "q1", RunStatus.QUEUED, ago=timedelta(minutes=1), startedAt="-", workerId="")
    out, _ = home.call("history", "--format", "json")
    assert (
        f"""\
[
  {{
    "name": "etl",
    "dagRunId": "r1",
    "status": "failed",
    "startedAt": "{run["startedAt"]}",
    "finishedAt": "{run["finishedAt"]}",
    "duration": "2m30s",
    "params": "\\u003cx\\u003e",
    "labels": [
      "team=data"
    ],
    "workerId": "local",
    "error": "a \\u0026 b"
  }},
  {{
    "name": "etl",
    "dagRunId": "q1",
    "status": "queued",
    "duration": "-"
  }}
]
"""
        == out
    )


def test_a_run_of_less_than_a_second_is_escaped_too(home: Home) -> None:
    attempt = home.run("etl", "r1")
    attempt.write(json.dumps({**attempt.status(), "finishedAt": attempt.status()["startedAt"]}))
    assert '"duration": "\\u003c 1s"' in home.call("history", "-f", "json")[0]
    assert "  < 1s  " in home.call("history")[0]


def test_no_match_is_told_on_standard_error_and_is_no_failure(home: Home) -> None:
    message = "No DAG runs found matching the specified filters.\n"
    assert home.call("history") == ("", message)
    assert home.call("history", "-f", "json") == ("[]\n", message)


def test_history_filters(home: Home) -> None:
    home.run("etl", "new", RunStatus.FAILED, labels=["team=data", "nightly"])
    home.run("etl", "week", RunStatus.ABORTED, ago=timedelta(days=6), labels=["team=web"])
    home.run("web", "month", ago=timedelta(days=29))
    home.run("web", "old", ago=timedelta(days=31))
    home.dag("alias", "name: etl\nsteps: [{id: a, run: echo}]\n")
    assert home.ids() == ["new", "week", "month"]
    assert home.ids("etl") == home.ids("alias") == home.ids(str(home.dags / "alias.yaml")) == ["new", "week"]
    assert home.ids("--last", "24h") == ["new"]
    assert home.ids("--last=1w") == ["new", "week"]
    assert home.ids("--last", "7d", "--status", "Cancelled") == ["week"]
    assert home.ids("--status", "failure,canceled") == ["new", "week"]
    assert home.ids("--run-id", "e") == ["new", "week"]
    assert home.ids("--limit", "1") == ["new"]
    assert home.ids("--labels", "TEAM") == ["new", "week"]
    assert home.ids("--labels", "team=data,nightly") == ["new"]
    assert home.ids("--labels", "!nightly") == ["week", "month"]
    assert home.ids("--labels", "!team=data,team") == ["week"]
    today, then = datetime.now(UTC), datetime.now(UTC) - timedelta(days=30)
    assert home.ids("--from", "2020-01-01") == ["new", "week", "month", "old"]
    assert home.ids("--from", f"{then:%Y-%m-%d}", "--to", f"{today:%Y-%m-%d}") == ["new", "week", "month"]
    assert home.ids("--to", f"{then:%Y-%m-%dT%H:%M:%SZ}") == ["old"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["--last", "7d", "--to", "2020-01-01"],
            "cannot use --last with --from or --to (conflicting time range specifications)",
        ),
        (["--status", "x"], "invalid status 'x'. Valid values: running, succeeded, failed, aborted, queued"),
        (["--format", "xml"], "invalid format 'xml'. Valid values: table, json, csv"),
        (["--last", "7 days"], "invalid --last value '7 days'"),
        (["--from", "yesterday"], "invalid --from value 'yesterday'"),
        (["--from", "2020-01-02", "--to", "2020-01-01"], "--from must be before --to"),
        (["--limit", "1001"], "invalid limit '1001': must be between 1 and 1000"),
        (["--limit", "ten"], "invalid limit 'ten'"),
    ],
)
def test_history_refuses_what_it_does_not_understand(home: Home, words: list[str], error: str) -> None:
    out, err = home.call("history", *words, code=1)
    assert out == ""
    assert err.startswith(f"Error: {error}")


def test_the_history_of_a_workflow_that_no_longer_loads_is_still_there(home: Home) -> None:
    home.run("broken", "r1")
    home.dag("broken", "steps: [{id: a, nonsense: 1}]\n")
    assert home.ids("broken") == ["r1"]


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_shows_the_newest_run_or_the_one_that_is_named(home: Home) -> None:
    home.run("etl", "r1", RunStatus.FAILED, ago=timedelta(days=1))
    home.run("etl", "r2")
    assert home.call("status", "etl")[0].endswith("\nResult: Succeeded\n")
    assert home.call("status", "etl", "-r", "r1")[0].endswith("\nResult: Failed\n")
    assert home.call("status", "-q", "etl") == ("", "")
    assert json.loads(home.call("status", "etl", "--json")[0])["run"]["runId"] == "r2"


def test_status_of_an_unknown_dag_or_run_fails_with_the_words_of_the_reference(home: Home) -> None:
    head = "Error: failed to extract attempt: failed to find"
    assert home.call("status", "etl", code=1)[1] == f"{head} the latest run data for DAG etl: no status data\n"
    home.run("etl", "r1")
    assert home.call("status", "etl", "-r", "x", code=1)[1].startswith(f"{head} run data for dag-run ID x: ")
    assert home.call("status", "etl", "-r", "r1", "-s", "c", code=1)[1].startswith(
        f"{head} run data for dag-run ID c: "
    )
    assert "--sub-run-id requires --run-id" in home.call("status", "etl", "-s", "c", code=1)[1]
    assert "accepts 1 arg(s), received 0" in home.call("status", code=1)[1]


def test_status_shows_a_child_run(home: Home) -> None:
    home.run("etl", "r1")
    root = home.records.find(DagRunRef("etl", "r1"))
    assert root is not None
    child = root.child(DagRunRef("part", "c1")).add_attempt(AttemptId("def456"), now=datetime.now(UTC))
    child.write(json.dumps({"name": "part", "dagRunId": "c1", "status": 2, "nodes": []}))
    out, _ = home.call("status", "etl", "-r", "r1", "-s", "c1")
    assert "dag: part" in out
    assert "Result: Failed" in out


def test_a_run_whose_process_is_gone_is_turned_into_failed(home: Home) -> None:
    node = {"step": {"name": "a"}, "status": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": ""}
    attempt = home.run("etl", "r1", RunStatus.RUNNING, nodes=[node, {**node, "status": 0}], onInit=node)
    assert "Status: Running" in home.call("status", "etl")[0]  # not ours: we cannot tell
    with attempt.alive():
        assert "Status: Running" in home.call("status", "etl")[0]
    assert "Result: Failed" in home.call("status", "etl")[0]
    kept = attempt.status()
    assert (kept["status"], kept["error"]) == (2, "the process that ran it is gone")
    assert [item["status"] for item in (*kept["nodes"], kept["onInit"])] == [2, 0, 2]
    assert kept["finishedAt"]


def test_history_repairs_as_well(home: Home) -> None:
    with home.run("etl", "r1", RunStatus.RUNNING).alive():
        assert home.ids("--status", "running") == ["r1"]
    assert home.ids("--status", "running") == []
    assert home.ids("--status", "failed") == ["r1"]


def test_an_attempt_without_a_status_has_not_started(home: Home) -> None:
    record = home.records.create(DagRunRef("etl", "r1"), now=datetime.now(UTC))
    record.add_attempt(AttemptId("abc123"), now=datetime.now(UTC))
    assert "Status: Not Started" in home.call("status", "etl")[0]
    assert home.ids("--status=not_started") == ["r1"]


# ── ls, ps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ls_lists_the_workflows_of_the_directory(home: Home) -> None:
    assert home.call("ls") == ("No DAGs found\n", "")
    home.dag("b")
    home.dag("a", "name: other\nsteps: [{id: a, run: echo}]\n")
    (home.dags / "c.yml").write_text("this: is broken\n")
    (home.dags / "notes.txt").write_text("no workflow")
    assert home.call("ls")[0] == "NAME\nb\nc\nother\n"
    assert home.call("ls", "-r")[0] == "NAME\nother\nc\nb\n"
    assert home.call("ls", "OTH")[0] == home.call("ls", "o*r")[0] == "NAME\nother\n"
    assert home.call("ls", "x")[0] == "No DAGs found\n"


def test_ls_tells_how_they_did(home: Home) -> None:
    for name in ("a", "b", "c"):
        home.dag(name)
    for number in range(7):
        status = RunStatus.FAILED if number % 2 else RunStatus.SUCCEEDED
        home.run("b", f"r{number}", status, ago=timedelta(minutes=10 + number))
    began = home.run("c", "r").status()["startedAt"]
    lines = [line.split() for line in home.call("ls", "-l", "-H", "-t")[0].splitlines()]
    assert lines[0] == ["NAME", "LAST_STATUS", "LAST_STARTED", "HISTORY"]
    assert lines[1] == ["c", "succeeded", began, "succeeded"]
    assert (lines[2][0], lines[2][3]) == ("b", "succeeded,failed,succeeded,failed,succeeded")
    assert lines[3] == ["a", "-", "-", "-"]


def test_ls_tells_when_a_schedule_starts_a_workflow_next(home: Home) -> None:
    steps = "steps: [{id: a, run: echo}]\n"
    home.dag("a", f"schedule: TZ=UTC 30 6 * * *\n{steps}")
    home.dag("b", steps)
    home.dag("c", f"schedule: [{{at: '2020-01-01T00:00:00Z'}}]\n{steps}")
    home.dag("d", f"schedule: {{start: [{{at: '2999-01-01T01:00:00+01:00'}}], stop: 0 0 * * *}}\n{steps}")
    found = dict(line.split() for line in home.call("ls", "--next")[0].splitlines())
    assert found.pop("a").endswith("T06:30:00Z")
    assert found == {"NAME": "NEXT_RUN", "b": "-", "c": "-", "d": "2999-01-01T00:00:00Z"}


def test_ps_lists_what_is_executed_now(home: Home) -> None:
    home.run("etl", "done")
    assert home.call("ps") == ("No running processes\n", "")
    attempt = home.run("etl", "r1", RunStatus.RUNNING, procGroup="night")
    with attempt.alive(), home.run("web", "r2", RunStatus.RUNNING).alive():
        head, *rows = (line.split() for line in home.call("ps")[0].splitlines())
        assert head == ["DAG", "RUN_ID", "ATTEMPT", "STARTED", "GROUP", "FRESH"]
        assert sorted(rows)[0] == ["etl", "r1", "abc123", attempt.status()["startedAt"], "night", "yes"]
        assert sorted(row[4] for row in rows) == ["night", "web"]
        assert "web" not in home.call("ps", "--dag", "etl")[0]
        assert "etl" not in home.call("ps", "-r", "2")[0]


# ── rm, cleanup ──────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_rm_asks_and_keeps_active_runs(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.run("etl", "r1")
    home.run("etl", "queued", RunStatus.QUEUED, ago=timedelta(minutes=1))
    question = 'This will delete all history for DAG "etl".\nActive runs will be preserved.\nContinue? [y/N]: '
    for text in ("n\n", "", "\n"):
        answer(monkeypatch, text)
        assert home.call("rm", "-H", "etl") == (f"{question}Cancelled.\n", "")
    assert home.ids() == ["r1", "queued"]
    answer(monkeypatch, "y\n")
    assert home.call("rm", "--history", "etl")[0] == f'{question}Deleted 1 run(s) for DAG "etl".\n'
    assert home.ids() == ["queued"]


def test_a_dry_run_of_rm_only_tells(home: Home) -> None:
    home.run("etl", "new")
    home.run("etl", "old", ago=timedelta(days=11))
    head = 'Dry run: Would delete {} run(s) for DAG "etl":\n'
    assert home.call("rm", "-H", "--dry-run", "etl")[0] == head.format(2) + "  - new\n  - old\n"
    assert home.call("rm", "-H", "--dry-run", "-t", "10d", "etl")[0] == head.format(1) + "  - old\n"
    assert home.call("cleanup", "--retention-days", "10", "--dry-run", "etl")[0] == head.format(1) + "  - old\n"
    assert home.ids("--from=2020-01-01") == ["new", "old"]


def test_what_a_run_left_goes_with_it(home: Home) -> None:
    log = home.path / "logs" / "etl" / "dag-run_20260101_000000Z_r1"
    artifacts = home.path / "data" / "artifacts" / "etl" / "dag-run_20260101_000000Z_r1"
    elsewhere = home.path / "precious"
    for folder in (log, artifacts, elsewhere):
        folder.mkdir(parents=True)
    home.run("etl", "r1", log=str(log / "run.log"), archiveDir=str(artifacts))
    home.run("etl", "r2", log=str(elsewhere / "x.log"), archiveDir=str(elsewhere))
    home.call("rm", "-H", "-f", "etl")
    assert not log.exists()
    assert not artifacts.exists()
    assert elsewhere.exists()


def test_the_definition_stays_while_a_run_is_active(home: Home) -> None:
    path = home.dag("etl")
    with home.run("etl", "r1", RunStatus.RUNNING).alive():
        assert "it has active runs" in home.call("rm", "-d", "-f", "etl", code=1)[1]
        assert path.exists()
    assert f"  - {path}\n" in home.call("rm", "-d", "--dry-run", "etl")[0]
    home.call("rm", "-H", "-d", "-f", "etl")
    assert not path.exists()
    assert 'DAG "etl" not found' in home.call("rm", "-H", "etl", code=1)[1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["rm", "etl"], "at least one of --history (-H) or --definition (-d) is required"),
        (["rm", "-H"], "accepts 1 arg(s), received 0"),
        (["rm", "-H", "-t", "soon", "etl"], "invalid --older-than value 'soon'"),
        (["rm", "-d", "-t", "1d", "etl"], "--older-than requires --history"),
        (["cleanup", "--retention-days=-1", "etl"], "invalid retention-days value '-1'"),
        (["cleanup"], "accepts 1 arg(s), received 0"),
    ],
)
def test_rm_refuses_what_it_does_not_understand(home: Home, words: list[str], error: str) -> None:
    assert home.call(*words, code=1)[1].startswith(f"Error: {error}")


# ── config, schema, example ──────────────────────────────────────────────────────────────────────────────────────────


def test_config_lists_where_things_are(home: Home) -> None:
    found = dict(line.split(":", 1) for line in home.call("config")[0].splitlines())
    assert list(found) == [
        "Base config", "DAGs directory", "DAG runs", "DAG-run work directory", "Data directory", "Tools directory",
        "Log directory", "Admin logs", "Suspend flags", "Queue", "Processes", "Service registry", "Executable",
    ]  # fmt: skip
    assert found["DAGs directory"].strip() == str(home.dags)
    assert found["Suspend flags"].strip() == str(home.path / "suspend")
    assert len({len(value) - len(value.lstrip()) + len(label) for label, value in found.items()}) == 1


def test_the_schema_of_the_configuration_takes_what_the_loader_takes(home: Home) -> None:
    import jsonschema

    schema = json.loads(home.call("schema", "config")[0])
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    for good in (
        {"coordinator": {"port": 7}, "worker": {"labels": {"gpu": "a"}, "coordinators": ["a:1"]}, "tz": "UTC"},
        {"paths": {"dags_dir": "/x", "queue_dir": "/y"}, "auth": {"mode": "none"}, "log_format": "json"},
    ):
        assert check.is_valid(good)
    for bad in ({"coordinator": {"prot": 7}}, {"nonsense": 1}, {"log_format": "xml"}, {"coordinator": {"port": "x"}}):
        assert not check.is_valid(bad)
    assert json.loads(home.call("schema", "config", "coordinator.port")[0])["type"] == "integer"


def test_the_schema_of_workflows_is_printed_whole_and_in_parts(home: Home) -> None:
    import jsonschema

    schema = json.loads(home.call("schema", "dag")[0])
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in ("steps.run", "steps.retry_policy.limit", "handler_on.exit.run", "steps.foreach.steps.id"):
        assert json.loads(home.call("schema", "dag", path)[0])
    assert "did you mean run?" in home.call("schema", "dag", "steps.rum", code=1)[1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "requires at least 1 arg(s), only received 0"),
        (["dags"], "unknown schema 'dags'"),
        (["config", "coordinator.prot"], "schema path 'coordinator.prot' not found: coordinator has no 'prot'\n"),
        (["config", "x"], "schema path 'x' not found: the root has no 'x'"),
    ],
)
def test_schema_refuses_what_it_does_not_know(home: Home, words: list[str], error: str) -> None:
    assert home.call("schema", *words, code=1)[1].startswith(f"Error: {error}")


def test_a_schema_path_goes_through_references_lists_and_alternatives() -> None:
    from secure_dagu.cli.schema import part

    step = {"type": "object", "properties": {"run": {"type": "string"}, "retry": {"$ref": "#/definitions/retry"}}}
    whole = {
        "properties": {
            "steps": {"oneOf": [{"type": "array", "items": {"$ref": "#/definitions/step"}}, {"type": "null"}]}
        },
        "definitions": {"step": step, "retry": {"properties": {"limit": {"type": "integer"}}}},
    }
    assert part(whole, "steps.run") == {"type": "string"}
    assert part(whole, "steps.retry.limit") == {"type": "integer"}


def test_examples_are_listed_and_printed(home: Home) -> None:
    first = home.call("example")[0].splitlines()[0]
    assert first.split(maxsplit=2)[:2] == ["1.", "hello"]
    assert home.call("example", "hello") == home.call("example", "1")
    for unknown in ("nope", "0", "99", "9" * 5000, "../x"):
        assert "does not exist" in home.call("example", unknown, code=1)[1]


EXAMPLES = sorted((Path(__file__).parents[2] / "secure_dagu" / "local" / "examples").glob("*.yaml"))
NEEDS_WORKERS = {"distributed"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_be_run(home: Home, path: Path) -> None:
    name = path.stem.partition("-")[2]
    home.dag(name, home.call("example", name)[0])
    home.call("start" if name not in NEEDS_WORKERS else "dry", "-q", name)


# ── profile ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_profile_keeps_variables_and_hides_secrets(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.call("profile", "list")[0] == "No profiles found\n"
    home.call("profile", "create", "prod", "--description", "the real thing")
    home.call("profile", "set-var", "prod", "REGION", "eu")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"canary\n")))
    home.call("profile", "set-secret", "prod", "TOKEN", "--value-stdin")
    assert "*******" in home.call("profile", "show", "prod")[0]
    shown = home.call("profile", "show", "prod", "--json")[0] + home.call("profile", "list")[0]
    assert "canary" not in shown
    assert json.loads(home.call("profile", "list", "--json")[0])["profiles"] == [
        {
            "name": "prod", "enabled": True, "description": "the real thing", "variables": {"REGION": "eu"},
            "secrets": ["TOKEN"],
        }
    ]  # fmt: skip
    home.call("profile", "delete-key", "prod", "REGION")
    assert "has no key REGION" in home.call("profile", "delete-key", "prod", "REGION", code=1)[1]
    home.call("profile", "delete", "prod")
    assert "does not exist" in home.call("profile", "show", "prod", code=1)[1]


def test_a_secret_on_the_command_line_is_taken_with_a_warning(home: Home) -> None:
    home.call("profile", "create", "p")
    assert "use --value-stdin" in home.call("profile", "set-secret", "p", "TOKEN", "x")[1]
    assert "exclude" in home.call("profile", "set-secret", "p", "TOKEN", "x", "--value-stdin", code=1)[1]
    assert "received 2" in home.call("profile", "set-var", "p", "A", code=1)[1]


def test_the_whole_help_imports_nothing_that_a_command_needs_to_run() -> None:
    check = """
import sys
from secure_dagu.cli import main
main.build_parser()
heavy = {"grpc", "ssl", "cryptography", "sqlalchemy", "pydantic", "ruamel", "asyncio", "msgspec", "rich", "structlog",
         "jsonschema", "httpx"}
there = [name for name, module in sys.modules.items() if type(module).__name__ != "_Later"]  # see cli.lean
print(sorted(heavy & {name.partition(".")[0] for name in there}))
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
