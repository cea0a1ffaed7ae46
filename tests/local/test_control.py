"""Runs of other processes: stopped, restarted, killed, retried, queued."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secure_dagu.store.records import Attempt
from tests.local.command import Host

OK = "steps: [{run: echo hello}]"
LONG = """
handler_on: {exit: {run: echo bye > bye}}
working_dir: .
steps:
  - {id: a, run: echo $$ > pid; exec sleep 60}
"""
STUBBORN = """
max_clean_up_time_sec: 1
working_dir: .
steps:
  - run: |
      trap '' TERM
      echo $$ > pid
      while :; do cut -d" " -f1 /proc/uptime > now; mv now alive_at; sleep 0.05; done
"""
TWO_STEPS = """
working_dir: .
steps:
  - {id: a, run: echo x >> ran}
  - id: b
    run: test -e go || { echo $$ > pid; exec sleep 60; }
    depends: a
"""
ONCE_LONG = """
params: [{a: x}]
working_dir: .
steps:
  - run: echo ${params.a} >> seen; test -e pid || { echo $$ > pid; exec sleep 60; }
"""
THREE_STEPS = """
working_dir: .
steps:
  - {id: a, run: echo a >> ran}
  - {id: b, run: echo b >> ran; test -e go, depends: a}
  - {id: c, run: echo c >> ran, depends: b}
"""
KEEP_TWO = """
hist_retention_runs: 2
artifacts: {enabled: true}
steps: [{run: echo x > $DAG_RUN_ARTIFACTS_DIR/a}]
"""


PROGRAM = (sys.executable, "-m", "secure_dagu.cli.main")


@contextmanager
def running(
    host: Host, *words: str, until: str = "pid", program: tuple[str, ...] = PROGRAM
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own, until a step has written a file; end it in any case."""
    env = {"PATH": "/usr/bin:/bin", "DAGU_HOME": str(host.home)}
    process = subprocess.Popen(
        [*program, *words], cwd=host.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(host.folder / until)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_run_its_handlers_run_and_the_exit_code_is_0(number: int, host: Host) -> None:
    with running(host, "start", host.file("flow.yaml", LONG)) as process:
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "Result: Aborted"
    assert (host.folder / "bye").exists()
    assert gone(int((host.folder / "pid").read_text()))


def test_what_runs_is_noted_where_the_configuration_says(host: Host) -> None:
    host.home.mkdir()
    (host.home / "config.yaml").write_text(f"paths: {{proc_dir: {host.folder}/procs}}\n")
    with running(host, "start", "-r", "one", host.file("flow.yaml", LONG)) as process:
        assert [path.name[:8] for path in (host.folder / "procs" / "flow").iterdir()] == ["flow~one"]
        assert "one" in host.ok("ps")
        assert f"Processes:              {host.folder}/procs\n" in host.ok("config")
        process.terminate()
        process.communicate(timeout=30)
    assert not (host.home / "data" / "proc").exists()


def test_a_terminal_that_goes_away_stops_its_run_and_leaves_nothing_behind(host: Host) -> None:
    host.file("flow.yaml", LONG)
    child, terminal = pty.fork()
    if not child:
        os.environ["DAGU_HOME"] = str(host.home)
        os.execv(sys.executable, [sys.executable, "-m", "secure_dagu.cli.main", "start", "flow.yaml"])
    wait_for(host.folder / "pid")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert host.status("flow")["status"] == 3
    assert (host.folder / "bye").exists()
    assert gone(int((host.folder / "pid").read_text()))


def test_a_run_under_nohup_outlives_its_terminal(host: Host) -> None:
    host.file("flow.yaml", LONG)
    words = ["nohup", sys.executable, "-m", "secure_dagu.cli.main", "start", "flow.yaml"]
    with running(host, *words, program=()) as process:
        process.send_signal(signal.SIGHUP)
        assert "Running" in host.ok("status", "flow.yaml")
        process.terminate()
        process.communicate(timeout=30)
    assert host.status("flow")["status"] == 3


@pytest.mark.parametrize("words", [(), ("-r", "one")])
def test_stop_ends_runs_of_another_process(words: tuple[str, ...], host: Host) -> None:
    with running(host, "start", "-r", "one", host.file("flow.yaml", LONG)) as process:
        assert "Dag-run stop requested" in host.run("stop", *words, "flow.yaml").err
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert host.status("flow")["status"] == 3
    done = host.run("stop", "flow.yaml")
    assert (done.code, done.out) == (0, "")
    assert "No running DAG runs found" in done.err


def test_a_step_that_ignores_the_signal_is_killed_in_time(host: Host) -> None:
    with running(host, "start", host.file("flow.yaml", STUBBORN)) as process:
        asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert float((host.folder / "alive_at").read_text()) - asked_at < 5
    assert gone(int((host.folder / "pid").read_text()))


def test_a_killed_run_is_shown_as_failed_and_can_be_retried(host: Host) -> None:
    flow = host.file("flow.yaml", TWO_STEPS)
    with running(host, "start", "-r", "one", flow) as process:
        while host.status("flow")["nodes"][1]["status"] != 1:  # what a step leaves is on record soon after its end
            assert process.poll() is None
        process.kill()
        process.wait()
        os.killpg(int((host.folder / "pid").read_text()), signal.SIGKILL)
    assert "Result: Failed" in host.ok("status", flow)
    (host.folder / "go").touch()
    assert "Result: Succeeded" in host.ok("retry", "-r", "one", flow)
    assert (host.folder / "ran").read_text() == "x\n"
    assert len(host.attempts("flow")) == 2


def test_restart_stops_the_running_run_and_starts_a_new_one_with_its_parameters(host: Host) -> None:
    flow = host.file("flow.yaml", ONCE_LONG)
    with running(host, "start", "-r", "one", flow, "--", "a=kept") as process:
        assert "Result: Succeeded" in host.ok("restart", flow)
        process.communicate(timeout=30)
    assert (host.folder / "seen").read_text() == "kept\nkept\n"
    assert len({path.parent.name for path in host.attempts("flow")}) == 2
    done = host.run("restart", flow)
    assert (done.code, done.err) == (1, "Error: DAG flow is not running, current status: succeeded\n")
    host.ok("enqueue", flow)
    host.ok("dequeue", "flow")
    assert host.run("restart", flow).err == done.err, "what was taken out of a queue is no run"


def test_a_restart_that_makes_no_sense_stops_nothing(host: Host) -> None:
    flow = host.file("flow.yaml", LONG)
    with running(host, "start", flow) as process:
        done = host.run("restart", "--schedule-time", "noon", flow)
        assert (done.code, done.out) == (1, "")
        assert 'invalid --schedule-time value "noon"' in done.err
        assert "Running" in host.ok("status", flow)
        process.terminate()
        process.communicate(timeout=30)


def test_retry_runs_what_did_not_succeed_of_the_stored_definition(host: Host) -> None:
    flow = host.file("flow.yaml", THREE_STEPS)
    assert host.run("start", "-r", "one", flow).code == 1
    host.file("flow.yaml", "steps: [{run: exit 9}]")
    assert host.run("retry", "-r", "one", flow).code == 1
    (host.folder / "go").touch()
    host.ok("retry", "-r", "one", flow)
    assert (host.folder / "ran").read_text() == "a\nb\nb\nb\nc\n"
    assert host.status("flow")["triggerType"] == 5


def test_runs_are_stopped_and_retried_whatever_has_become_of_their_file(host: Host) -> None:
    flow = host.file("flow.yaml", TWO_STEPS)
    with running(host, "start", "-r", "one", flow) as process:
        host.file("flow.yaml", "steps: [")
        assert "stop requested" in host.run("stop", flow).err
        assert process.wait(timeout=30) == 0
    (host.folder / "go").touch()
    assert "Result: Succeeded" in host.ok("retry", "-r", "one", flow)
    assert host.run("start", flow).code == 1


def test_a_step_that_a_retry_keeps_has_its_logs_still(host: Host) -> None:
    text = "steps: [{id: a, run: echo kept}, {id: b, depends: a, run: 'cat ${a.stdout}; test -e go', working_dir: .}]"
    flow = host.file("flow.yaml", "working_dir: .\n" + text)
    assert host.run("start", "-r", "one", flow).code == 1
    before = host.status("flow")["nodes"][0]["stdout"]
    (host.folder / "go").touch()
    for words in ((), ("--step", "b")):
        told = host.ok("retry", "-r", "one", *words, flow)
        assert host.status("flow")["nodes"][0]["stdout"] == before
        assert f"─stdout: {before}\n" in told
        assert told.count("    kept\n") == 2, "its own, and what b read of it"


def test_retry_runs_one_step_or_it_and_what_depends_on_it(host: Host) -> None:
    flow = host.file("flow.yaml", THREE_STEPS)
    (host.folder / "go").touch()
    host.ok("start", "-r", "one", flow)
    (host.folder / "ran").unlink()
    host.ok("retry", "-r", "one", "--step", "b", flow)
    assert (host.folder / "ran").read_text() == "b\n"
    host.ok("retry", "-r", "one", "--step", "b", "--downstream", flow)
    assert (host.folder / "ran").read_text() == "b\nb\nc\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), 'required flag(s) "run-id" not set'),
        (("-r", "gone"), "failed to find the record for dag-run ID gone: dag-run ID not found: gone"),
        (("-r", "one", "--downstream"), "--downstream requires --step"),
        (("-r", "one", "-s", "x"), "--sub-run-id requires --step"),
        (("-r", "one", "--step", "nope"), "nope"),
    ],
)
def test_a_retry_that_makes_no_sense_changes_nothing(words: tuple[str, ...], said: str, host: Host) -> None:
    flow = host.file("flow.yaml", "steps: [{id: a, run: exit 1}]")
    host.run("start", "-r", "one", flow)
    done = host.run("retry", *words, flow)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert len(host.attempts("flow")) == 1


def test_what_a_full_disk_prevents_changes_nothing(host: Host) -> None:
    flow = host.file("flow.yaml", OK)
    host.ok("start", "-r", "one", flow)

    def without_room(*words: str) -> str:
        program = ["sh", "-c", 'ulimit -f 0; exec "$@"', "-", *PROGRAM, *words, "--dagu-home", str(host.home)]
        done = subprocess.run(program, cwd=host.folder, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert "Error: dag.json of a run cannot be written: " in without_room("retry", "-r", "one", flow)
    assert "Error: the run cannot be recorded: " in without_room("start", "-r", "two", flow)
    assert "Error: the run cannot be recorded: " in without_room("enqueue", "-r", "two", flow)
    assert "Result: Succeeded" in host.ok("status", flow)
    host.ok("start", "-r", "two", flow)


def test_what_cannot_be_deleted_is_not_called_deleted(host: Host) -> None:
    flow = host.file("flow.yaml", OK)
    host.ok("start", "-r", "one", flow)
    [attempt] = host.attempts("flow")
    for folder in (attempt.parents[1], attempt.parent):
        folder.chmod(0o500)
    program = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []  # or root may do anything
    try:
        for words, said in (
            (("retry", "-r", "one", flow), "the run cannot be recorded"),
            (("rm", "-H", "-f", flow), "dag-run one cannot be deleted"),
        ):
            program_words = [*program, *PROGRAM, *words, "--dagu-home", str(host.home)]
            done = subprocess.run(program_words, cwd=host.folder, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"Error: {said}: ")
            assert "fix: look at the disk and the rights of paths.data_dir" in done.stderr
    finally:
        for folder in (attempt.parents[1], attempt.parent):
            folder.chmod(0o750)
    host.ok("rm", "-H", "-f", flow)
    assert not host.attempts("flow")


def test_a_queued_run_is_listed_until_it_is_taken_out(host: Host) -> None:
    flow = host.file("flow.yaml", "params: [{a: x}]\nsteps: [{run: 'true'}]")
    done = host.run("enqueue", "-r", "one", flow, "--", "a=1")
    assert (done.code, done.out) == (0, "")
    assert "Enqueued dag-run" in done.err
    assert "Queued" in host.ok("status", flow)
    host.ok("enqueue", "-r", "two", flow)
    assert host.run("enqueue", "-r", "two", flow).code == 1
    assert [path.name.split("_")[1] for path in sorted(host.home.glob("data/queue/flow/*"))] == ["low", "low"]
    host.ok("dequeue", "flow", "-d", "flow:two")
    assert host.run("status", "-r", "two", flow).code == 1
    host.ok("dequeue", "flow")
    assert host.run("status", flow).code == 1
    done = host.run("dequeue", "flow")
    assert (done.code, done.err) == (1, "Error: no dag-run found in queue flow\n")


def test_a_queue_that_cannot_be_leaves_no_record(host: Host) -> None:
    flow = host.file("flow.yaml", "steps: [{run: 'true'}]")
    done = host.run("enqueue", "-u", "no queue", flow)
    assert (done.code, done.out) == (1, "")
    assert "'no queue' is no name of a queue" in done.err
    assert host.run("status", flow).code == 1
    assert not host.attempts("flow")


def test_of_many_who_take_a_run_out_of_its_queue_one_does(host: Host) -> None:
    flow = host.file("flow.yaml", OK)
    for run_id in ("one", "two"):
        host.ok("enqueue", "-r", run_id, flow)
    env = {"PATH": "/usr/bin:/bin", "DAGU_HOME": str(host.home)}
    takers = [
        subprocess.Popen([*PROGRAM, "dequeue", "flow", "-d", "flow:one"], env=env, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for taker in takers:
        taker.communicate(timeout=60)
    assert sorted(taker.returncode for taker in takers) == [0, 1, 1, 1]
    assert "two" in host.ok("history")


def test_a_run_that_begins_just_now_stays_in_its_queue(host: Host) -> None:
    flow = host.file("flow.yaml", OK)
    host.ok("enqueue", "-r", "one", flow)
    [folder] = host.attempts("flow")
    with Attempt(folder).alive():  # as the scheduler does
        done = host.run("dequeue", "flow")
    assert (done.code, done.out) == (1, "")
    assert "Queued" in host.ok("status", flow)
    assert host.ok("dequeue", "flow") == ""


def test_a_dag_with_a_queue_of_its_own_is_retried_through_it(host: Host) -> None:
    flow = host.file("flow.yaml", "queue: nightly\nsteps: [{run: exit 1}]")
    host.run("start", "-r", "one", flow)
    assert "Enqueued" in host.run("retry", "-r", "one", flow).err
    assert len(list(host.home.glob("data/queue/nightly/item_low_*_one.json"))) == 1
    assert "Queued" in host.ok("status", flow)


def test_without_queues_nothing_is_enqueued_and_a_retry_runs_at_once(host: Host) -> None:
    host.home.mkdir()
    (host.home / "config.yaml").write_text("queues: {enabled: false}\n")
    flow = host.file("flow.yaml", "queue: nightly\nworking_dir: .\nsteps: [{run: test -e go}]")
    host.run("start", "-r", "one", flow)
    done = host.run("enqueue", "-r", "two", flow)
    assert (done.code, done.out) == (1, "")
    assert "queues are turned off: queues.enabled is false" in done.err
    (host.folder / "go").touch()
    assert "Result: Succeeded" in host.ok("retry", "-r", "one", flow)
    assert len(host.attempts("flow")) == 2


def test_old_runs_go_with_everything_that_they_left(host: Host) -> None:
    flow = host.file("flow.yaml", KEEP_TWO)
    for number in range(4):
        host.ok("start", "-r", f"r{number}", flow)
    left = {path.parent.name.rpartition("_")[2] for path in host.attempts("flow")}
    assert left == {"r2", "r3"}
    for folder in ("logs/flow", "data/artifacts/flow", "data/dag-run-work/flow", "data/dag-runs/flow/ids"):
        assert len(list((host.home / folder).iterdir())) == 2, folder


def test_a_step_of_a_child_run_is_run_again_in_the_child(host: Host) -> None:
    text = """
working_dir: .
steps: [{id: call, action: dag.run, with: {dag: child}}]
---
name: child
working_dir: .
steps:
  - {id: a, run: echo a >> ran}
  - {id: b, run: echo b >> ran; test -e go, depends: a}
"""
    flow = host.file("flow.yaml", text)
    assert host.run("start", "-r", "one", flow).code == 1
    [child] = [node["children"][0]["dagRunId"] for node in host.status("flow")["nodes"]]
    (host.folder / "go").touch()
    assert "Result: Succeeded" in host.ok("retry", "-r", "one", "-s", child, "--step", "b", flow)
    assert (host.folder / "ran").read_text() == "a\nb\nb\n"
    assert "Result: Succeeded" in host.ok("status", "-r", "one", "-s", child, flow)
    assert "Result: Failed" in host.ok("status", "-r", "one", flow)
    assert "Result: Succeeded" in host.ok("retry", "-r", "one", flow)
    assert (host.folder / "ran").read_text() == "a\nb\nb\n"
    assert host.run("retry", "-r", "one", "-s", "gone", "--step", "b", flow).code == 1


def test_a_document_of_the_file_calls_itself(host: Host) -> None:
    text = """
working_dir: .
steps: [{action: dag.run, with: {dag: down, params: n=2}}]
---
name: down
working_dir: .
params: {n: 0}
steps:
  - {id: say, run: 'echo $n >> ran; echo $((n - 1))', output: LESS}
  - id: on
    depends: say
    preconditions: [{condition: "${params.n}", expected: "0", negate: true}]
    action: dag.run
    with: {dag: down, params: "n=${say.output}"}
"""
    assert "Result: Succeeded" in host.ok("start", host.file("flow.yaml", text))
    assert (host.folder / "ran").read_text() == "2\n1\n0\n"


def test_a_call_shows_what_the_child_published_and_not_what_it_keeps_for_itself(host: Host) -> None:
    text = """
steps: [{id: call, action: dag.run, with: {dag: child}}]
---
name: child
steps:
  - {id: own, run: echo d=1 > $DAGU_OUTPUT_FILE, outputs: [{name: d}]}
  - {id: said, run: echo v, output: V}
  - {id: told, action: outputs.write, with: {values: {w: 2}}}
  - {id: deeper, action: dag.run, with: {dag: grandchild}}
  - {id: each, foreach: {items: [1], steps: [{run: echo x, output: X}], collect: {c: k}}}
---
name: grandchild
steps: [{run: echo g, output: G}]
"""
    host.ok("start", host.file("flow.yaml", text))
    [call] = host.status("flow")["nodes"]
    assert json.loads(call["outputsValue"]) == {"V": "v", "w": 2}


def test_a_secret_that_a_child_gets_as_a_parameter_stays_off_the_disk(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYSEC", "topsecret99")
    text = """
secrets: [{name: S1, provider: env, key: MYSEC}]
steps: [{id: kid, action: dag.run, with: {dag: k2, params: {z: "$S1"}}}]
---
name: k2
params: {z: 0}
steps: [{run: 'test "${#z}" = 11'}]
"""
    assert "Result: Succeeded" in host.ok("start", host.file("flow.yaml", text))
    kept = [path for path in host.home.rglob("*") if path.is_file()]
    assert len(kept) > 4
    assert not [path for path in kept if b"topsecret99" in path.read_bytes()]
