"""`secure-dagu --context NAME …`: the commands of one host at the server of another, over HTTPS and on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from secure_dagu.cli import main as cli
from tests.ports import free_port
from tests.system.hosts import PROGRAM, Host, Service

PASSWORD = "correct horse"
WORKFLOWS = {
    "hello": "name: greeting\nparams: WHO=x\nsteps:\n  - id: a\n    run: echo hello $WHO\n",
    "broken": "steps:\n  - id: a\n    run: echo before\n  - id: b\n    run: echo bad luck >&2; test -e {flag}\n",
    "slow": "steps:\n  - id: a\n    run: echo begun; sleep 60\n",
    "waits": "queue: held\nsteps:\n  - id: a\n    run: echo queued\n",
    "parent": "steps:\n  - id: call\n    action: dag.run\n    with: {{dag: hello}}\n",
}


@dataclass
class Installation:
    """A server with an operator's and a viewer's key, and a machine whose commands go there."""

    server: Host
    laptop: Host
    service: Service
    url: str
    keys: dict[str, str]

    @property
    def flag(self) -> Path:
        """Return the file on the server's host that `broken` wants."""
        return self.server.home / "flag"

    def at(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of the laptop in the context of the server."""
        return self.laptop.run("--context", "prod", *words, timeout_s=timeout_s)

    def ok(self, *words: str) -> str:
        """Run one that must succeed."""
        done = self.at(*words)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def runs(self, dag: str, status: str = "") -> list[str]:
        """Return the ids of runs, newest first."""
        more = ["--status", status] if status else []
        return [run["dagRunId"] for run in json.loads(self.ok("history", dag, "-f", "json", *more))]

    def until(self, dag: str, status: str, *, count: int = 1) -> list[str]:
        """Wait until so many runs have a status."""
        until = time.monotonic() + 60
        while len(found := self.runs(dag, status)) < count:
            assert time.monotonic() < until, self.service.text
            time.sleep(0.1)
        return found


def with_stdin(host: Host, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that reads standard input."""
    return subprocess.run(
        [str(PROGRAM), *words],
        env=host.environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def added(host: Host, key: str, *words: str) -> None:
    """Add a context."""
    done = with_stdin(host, f"{key}\n", "context", "add", *words, "--api-key-stdin")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@contextlib.contextmanager
def installation(folder: Path, *, is_https: bool) -> Iterator[Installation]:
    """Run `start-all` of one host, with keys, and give another host a context of it."""
    server, laptop = Host(folder / "server"), Host(folder / "laptop")
    for host in (server, laptop):
        host.home.mkdir()
    (server.home / "dags").mkdir()
    for name, text in WORKFLOWS.items():
        (server.home / "dags" / f"{name}.yaml").write_text(text.format(flag=server.home / "flag"))
    config = "queues:\n  config:\n    - {name: held, max_concurrency: 1}\n"
    port = free_port()
    words = ["start-all", f"--port={port}", "--scheduler.port=0"]
    verify: ssl.SSLContext | bool = True
    if is_https:
        server.ok("pki", "init", "--advertise", "localhost")
        pki = server.home / "pki"
        config += f"tls: {{cert_file: {pki}/coordinator.crt, key_file: {pki}/coordinator.key}}\n"
        verify = ssl.create_default_context(cafile=server.home / "pki" / "ca.crt")
    (server.home / "config.yaml").write_text(config)
    url = f"https://localhost:{port}" if is_https else f"http://127.0.0.1:{port}"
    with server.service(*words) as service, httpx.Client(base_url=f"{url}/api/v1", timeout=30, verify=verify) as api:
        service.wait_for(r"msg=ready\s")
        told = api.post("/auth/setup", json={"username": "ada", "password": PASSWORD})
        assert told.status_code == 200, told.text
        api.headers["Authorization"] = f"Bearer {told.json()['token']}"
        keys = {}
        for role in ("operator", "viewer"):
            body = {"name": role, "role": role, "allowedSurfaces": ["rest_api"],
                    "attributionClass": "service_account", "serviceAccountName": role}  # fmt: skip
            made = api.post("/api-keys", json=body)
            assert made.status_code == 201, made.text
            keys[role] = made.json()["key"]
        found = Installation(server, laptop, service, url, keys)
        more = ["--ca-file", str(server.home / "pki" / "ca.crt")] if is_https else []
        added(laptop, keys["operator"], "prod", "--server", url, *more, "--description", "where things run")
        yield found
        assert service.stop() == 0


def quickly(host: Host, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command of a host in this process, which saves a second; return exit code, output and errors."""
    capsys.readouterr()
    code = cli.main(["--dagu-home", str(host.home), *words])
    return (code, *capsys.readouterr())


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("far"), is_https=True) as found:
        yield found


def test_a_context_is_tested_layer_by_layer_and_says_as_whom_it_is_known(far: Installation) -> None:
    told = far.laptop.ok("context", "test", "prod")
    assert re.findall(r"^(\w+) +(\w+) ", told, re.M) == [
        ("ok", "config"), ("ok", "name"), ("ok", "route"), ("ok", "tls"), ("ok", "api"), ("ok", "login"),
    ]  # fmt: skip
    assert "TLSv1.3" in told
    assert "known there as apikey:operator, role operator" in told
    assert told.endswith("\nEverything works.\n")
    document = json.loads(far.laptop.ok("context", "test", "prod", "--json"))
    assert document["ok"]
    assert [check["state"] for check in document["checks"]] == ["ok"] * 6
    assert far.keys["operator"] not in told + json.dumps(document)


def test_the_list_shows_everything_but_the_key(far: Installation) -> None:
    listed = far.laptop.ok("context", "list")
    assert re.search(r"^\*  local +- +this host$", listed, re.M)
    assert re.search(rf"^   prod +{far.url}/api/v1 +where things run$", listed, re.M)
    [local, prod] = json.loads(far.laptop.ok("context", "list", "--json"))["contexts"]
    assert (local["name"], local["current"]) == ("local", True)
    assert (prod["name"], prod["hasApiKey"], prod["timeoutSeconds"]) == ("prod", True, 30)
    assert far.keys["operator"] not in listed + json.dumps(prod)
    assert stat.S_IMODE((far.laptop.home / "data" / "contexts" / "prod.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["hello", "greeting"])
def test_start_runs_there_and_prints_here_what_it_printed(far: Installation, name: str) -> None:
    done = far.at("start", name, "--labels", "team=x", "--", "WHO=two words")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Succeeded - ")
    assert "dag: greeting (" in done.stdout
    assert "hello two words" in done.stdout
    assert done.stdout.endswith("\nResult: Succeeded\n")
    assert not (far.laptop.home / "data" / "dag-runs").exists()
    assert far.ok("status", name) == done.stdout
    [newest, *_] = json.loads(far.ok("history", name, "-f", "json", "--labels", "team=x"))
    assert newest["name"] == "greeting"
    assert newest["params"] == "WHO=two words"


def test_a_failed_run_fails_the_command_and_can_be_retried(far: Installation) -> None:
    far.flag.unlink(missing_ok=True)
    done = far.at("start", "broken", "-r", "first")
    assert done.returncode == 1
    assert "bad luck" in done.stdout
    assert "Error: failed to execute the dag-run broken (dag-run ID: first): " in done.stderr
    again = far.at("retry", "broken", "-r", "first")
    assert (again.returncode, "Result: Failed" in again.stdout) == (1, True)
    far.flag.touch()
    good = far.at("retry", "broken", "-r", "first")
    assert good.returncode == 0, good.stderr
    assert good.stdout.endswith("Result: Succeeded\n")
    one = far.at("retry", "broken", "-r", "first", "--step", "b")
    assert one.returncode == 0, one.stderr
    assert json.loads(far.ok("status", "broken", "-r", "first", "--json"))["run"]["status"] == "succeeded"
    assert len(far.runs("broken")) == 1


def test_start_from_an_earlier_run_takes_its_parameters(far: Installation) -> None:
    far.ok("start", "hello", "-r", "original", "--", "WHO=again")
    assert "hello again" in far.ok("start", "hello", "--from-run-id", "original", "-r", "copy")
    assert {"original", "copy"} <= set(far.runs("greeting"))


def test_enqueue_and_dequeue_act_on_the_queues_there(far: Installation) -> None:
    def queue(verb: str) -> None:
        answer = httpx.post(
            f"{far.url}/api/v1/queues/held/{verb}", headers={"Authorization": f"Bearer {far.keys['operator']}"},
            verify=ssl.create_default_context(cafile=far.server.home / "pki" / "ca.crt"),
        )  # fmt: skip
        assert answer.status_code == 200, answer.text

    queue("pause")
    for run_id in ("q1", "q2", "q3"):
        done = far.at("enqueue", "waits", "-r", run_id)
        assert (done.returncode, done.stdout) == (0, "")
        assert re.search(rf'msg="Enqueued dag-run" dag=waits run-id={run_id}', done.stderr)
    assert "run-id=q2" in far.at("dequeue", "held", "-d", "waits:q2").stderr
    assert "run-id=q1" in far.at("dequeue", "held").stderr
    wrong = far.at("dequeue", "held", "-d", "waits:q1")
    assert (wrong.returncode, wrong.stderr) == (
        1, "Error: no dag-run found in queue held: waits:q1 is not queued there\n",
    )  # fmt: skip
    queue("resume")
    assert far.until("waits", "succeeded") == ["q3"]
    assert far.at("dequeue", "nothing").stderr == "Error: no dag-run found in queue nothing\n"


def test_stop_ends_runs_there(far: Installation) -> None:
    for run_id in ("s1", "s2"):
        far.ok("enqueue", "slow", "-r", run_id, "-u", run_id)
    far.until("slow", "running", count=2)
    assert "run-id=s1" in far.at("stop", "slow", "-r", "s1").stderr
    assert "run-id=s2" in far.at("stop", "slow").stderr
    assert set(far.until("slow", "aborted", count=2)) >= {"s1", "s2"}
    assert "No running DAG runs found" in far.at("stop", "slow", "-r", "s1").stderr


def test_an_interrupted_start_stops_its_run_there(far: Installation) -> None:
    with far.laptop.service("--context", "prod", "start", "slow", "-r", "interrupted") as running:
        running.wait_for("DAG run started")
        far.until("slow", "running")
        running.signal(signal.SIGINT)
        assert running.wait() == 0
        assert "Result: Aborted" in running.text
    assert "interrupted" in far.runs("slow", "aborted")


def test_restart_stops_the_run_and_starts_a_new_one(far: Installation) -> None:
    idle = far.at("restart", "broken")
    assert (idle.returncode, "is not running, current status: " in idle.stderr) == (1, True)
    far.ok("enqueue", "slow", "-r", "r1", "-u", "r")
    far.until("slow", "running")
    with far.laptop.service("--context", "prod", "restart", "slow") as running:
        running.wait_for("DAG run started")
        [new] = far.until("slow", "running")
        assert new != "r1"
        assert "r1" in far.runs("slow", "aborted")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


def test_a_child_run_is_shown(far: Installation) -> None:
    told = far.ok("start", "parent", "-r", "mother")
    child = re.search(r"subdag: (\w+)", told)
    assert child is not None, told
    shown = far.ok("status", "parent", "-r", "mother", "-s", child[1])
    assert "dag: hello" in shown
    assert "hello x" in shown


def test_what_is_not_there_is_said_in_the_words_of_the_local_commands(
    far: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["start", "nothing"], "failed to load DAG from nothing: https://localhost:"),
        (["status", "nothing"], "failed to find the latest run data for DAG nothing: no status data"),
        (["status", "hello", "-r", "nope"], "failed to find run data for dag-run ID nope"),
        (["retry", "hello", "-r", "nope"], "nope"),
        (["retry", "hello"], 'required flag(s) "run-id" not set'),
        (["start", "hello.yaml"], "hello.yaml cannot be used in another context: it is a file of this host"),
        (["start", "./hello"], "it is a file of this host"),
        (["start", ".."], "'..' is no name"),
        (["status", "hello", "-r", "../../users"], "dag-run ID must only contain"),
        (["dequeue", ".."], "'..' is no name"),
        (["start", "hello", "--worker-id", "w"], "--worker-id cannot be used in the context prod"),
        (["start", "hello", "--default-working-dir", "/x"], "--default-working-dir cannot be used"),
        (["enqueue", "hello", "--trigger-type", "scheduler"], "--trigger-type cannot be used"),
        (["status", "hello", "--coordinators", "x:1"], "cannot be combined with a context"),
        (["history", "--status", "nope"], "invalid status 'nope'"),
    ):
        code, out, err = quickly(far.laptop, capsys, "--context", "prod", *words)
        assert (code, out) == (1, ""), words
        assert message in err, words


def test_only_the_commands_that_can_go_there_do(far: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ls"], ["rm", "-H", "hello"], ["exec", "--", "true"], ["version"], ["validate", "x.yaml"], ["ps"]):
        code, out, err = quickly(far.laptop, capsys, "--context", "prod", *words)
        assert (code, out) == (1, ""), words
        assert f"{words[0]} cannot be used in the context prod" in err
        assert "it acts on this host only (local context)" in err


def test_the_current_context_is_used_without_saying_so_and_local_leads_back(far: Installation) -> None:
    far.laptop.ok("context", "use", "prod")
    try:
        assert "hello" in far.laptop.ok("start", "hello")
        refused = far.laptop.run("ls")
        assert (refused.returncode, "the current context is prod" in refused.stderr) == (1, True)
        assert far.laptop.ok("--context", "local", "ls") is not None
        assert far.laptop.run("history", "hello", "--context=local").stderr.startswith("No DAG runs found")
        assert far.laptop.ok("version")
        assert re.search(r"^\*  prod", far.laptop.ok("context", "list"), re.M)
    finally:
        far.laptop.ok("context", "use", "local")
    assert far.laptop.run("history", "hello").stderr.startswith("No DAG runs found")


def test_a_current_context_that_is_gone_is_not_taken_for_this_host(far: Installation) -> None:
    added(far.laptop, "k", "gone", "--server", far.url)
    far.laptop.ok("context", "use", "gone")
    (far.laptop.home / "data" / "contexts" / "gone.json").unlink()
    try:
        done = far.laptop.run("start", "hello")
        assert (done.returncode, 'context "gone" not found: it is the current one' in done.stderr) == (1, True)
    finally:
        far.laptop.ok("context", "use", "local")


def test_a_key_of_too_low_a_role_looks_and_starts_nothing(far: Installation) -> None:
    ca = str(far.server.home / "pki" / "ca.crt")
    added(far.laptop, far.keys["viewer"], "view", "--server", far.url, "--ca-file", ca)
    try:
        assert "a viewer may look" in far.laptop.ok("context", "test", "view")
        before = len(far.runs("greeting"))
        done = far.laptop.run("--context", "view", "start", "hello")
        assert (done.returncode, "does not allow this: Insufficient permissions" in done.stderr) == (1, True)
        assert len(far.runs("greeting")) == before
        assert far.laptop.ok("--context", "view", "history", "hello") is not None
    finally:
        far.laptop.ok("context", "remove", "view")


def test_each_layer_that_fails_is_named(far: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    ca, port = str(far.server.home / "pki" / "ca.crt"), int(far.url.rpartition(":")[2])
    for layer, message, words in (
        ("tls", "no authority that is believed here has signed its certificate", [far.url]),
        ("route", "cannot be reached", [f"https://localhost:{free_port()}", "--ca-file", ca]),
        ("name", "nobody knows the name nobody.invalid", ["https://nobody.invalid", "--ca-file", ca]),
        ("api", "is no REST API of Dagu", [f"{far.url}/nowhere", "--ca-file", ca]),
        ("api", "it may want https://", [f"http://127.0.0.1:{port}"]),
        ("login", "does not know who asks", [far.url, "--ca-file", ca]),
    ):
        added(far.laptop, "dagu_wrong", "wrong", "--server", *words)
        code, out, _ = quickly(far.laptop, capsys, "context", "test", "wrong")
        assert code == 1
        assert re.search(rf"^FAIL +{layer} .*{re.escape(message)}|^ +why: .*{re.escape(message)}", out, re.M), out
        assert f"The fault is in the layer {layer} [" in out
        document = json.loads(quickly(far.laptop, capsys, "context", "test", "wrong", "--json")[1])
        assert (document["ok"], document["checks"][-1]["check"]) == (False, layer)
        code, out, err = quickly(far.laptop, capsys, "--context", "wrong", "status", "hello")
        assert (code, out, err[:7]) == (1, "", "Error: ")
        assert quickly(far.laptop, capsys, "context", "remove", "wrong")[0] == 0


def test_on_loopback_http_does_and_a_server_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    with installation(tmp_path, is_https=False) as near:
        assert "not spoken; it stays on this host" in near.laptop.ok("context", "test", "prod")
        assert near.laptop.ok("context", "test", "local").startswith("ok    config ")
        port = near.url.rpartition(":")[2]
        with near.laptop.service("--context", "prod", "start", "slow", "-r", "long") as running:
            running.wait_for("DAG run started")
            near.until("slow", "running")
            near.service.signal(signal.SIGKILL)
            near.service.wait()
            running.wait_for("the server is away")
            with near.server.service("start-all", f"--port={port}", "--scheduler.port=0") as again:
                again.wait_for(r"msg=ready\s")
                near.ok("stop", "slow")
                assert running.wait() == 0
                assert "Result: Aborted" in running.text
                assert again.stop() == 0
        near.service.process.returncode = 0  # it was us who killed it
