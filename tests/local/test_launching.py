"""Start runs and steer them on this host, each in a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from secure_dagu.config.load import child_environment
from secure_dagu.dispatch.operating import Placement, StartRequest
from secure_dagu.errors import Conflict, DefinitionError, InvalidRequest, NotFound
from secure_dagu.local.launching import Launcher
from secure_dagu.run.model import DagRunRef, RunStatus, StepStatus
from tests.scheduler.host import Host, children_of, document, lines, status, until

QUICK = "steps: [{id: a, run: 'true'}]"


async def _ended(launcher: Launcher, run: DagRunRef, expected: RunStatus) -> None:
    await until(lambda: status(launcher, run) is expected)
    await until(lambda: not any(mark.is_alive() for mark in launcher.places.running.everywhere()))


async def test_a_run_is_started_and_outlives_who_started_it(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", f"steps: [{{id: a, run: 'while [ ! -e {tmp_path / 'go'} ]; do sleep 0.02; done'}}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow", run_id="r1", actor="me"))
        await until(lambda: status(launcher, run) is RunStatus.RUNNING)
        assert (await launcher.outlook("flow")).placement is Placement.LOCAL
    (tmp_path / "go").touch()  # the fork server is gone, its child goes on
    await _ended(launcher, run, RunStatus.SUCCEEDED)
    assert document(launcher, run)["triggerActor"] == "me"


async def test_where_a_dag_would_run_is_told_before_its_parameters_are_given(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", "params: [{name: version, required: true}]\nsteps: [{id: a, run: echo}]")
    async with host.launcher() as launcher:
        assert (await launcher.outlook("flow")).placement is Placement.LOCAL
        with pytest.raises(NotFound):
            await launcher.outlook("other")


async def test_a_killed_fork_server_is_started_again(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", QUICK)
    async with host.launcher() as launcher:
        first = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, first, RunStatus.SUCCEEDED)
        (server,) = children_of(os.getpid(), running="forkserver")
        os.kill(server, signal.SIGKILL)
        await until(lambda: server not in children_of(os.getpid()))
        second = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, second, RunStatus.SUCCEEDED)


async def test_stop_reaches_a_run_of_the_fork_server(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", "steps: [{id: a, run: 'sleep 60'}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await until(lambda: document(launcher, run).get("nodes", [{}])[0].get("status") == StepStatus.RUNNING)
        await launcher.stop(run, actor="me")
        await _ended(launcher, run, RunStatus.ABORTED)
        with pytest.raises(Conflict):
            await launcher.stop(run, actor="me")
        with pytest.raises(NotFound):
            await launcher.stop(DagRunRef("flow", "none"), actor="me")


async def test_the_environment_of_runs_carries_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("DAGU_AUTH_TOKEN_SECRET", "hush"), ("DAGU_PEER_TOKEN", "hush"), ("OTHER", "seen")):
        monkeypatch.setenv(name, value)
    assert "hush" not in child_environment().values()
    host = Host(tmp_path / "home")
    out = tmp_path / "out"
    host.dag(
        "flow",
        f"steps: [{{id: a, run: 'cat /proc/$PPID/environ > {out}; env >> {out}; echo $DAGU_HOME > {out}.home'}}]",
    )
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, run, RunStatus.SUCCEEDED)
    assert b"hush" not in out.read_bytes()
    assert lines(tmp_path / "out.home") == [str(host.home)]


async def test_ids_and_singletons_conflict(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", f"steps: [{{id: a, run: 'while [ ! -e {tmp_path / 'go'} ]; do sleep 0.02; done'}}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow", run_id="r1"))
        for again in (StartRequest(dag="flow", run_id="r1"), StartRequest(dag="flow", singleton=True)):
            with pytest.raises(Conflict):
                await launcher.start(again)
        (tmp_path / "go").touch()
        await _ended(launcher, run, RunStatus.SUCCEEDED)
        other = await launcher.start(StartRequest(dag="flow", singleton=True))
        await _ended(launcher, other, RunStatus.SUCCEEDED)


@pytest.mark.parametrize("dag", ["../flow", "/etc/passwd", "", ".", "..", "flow/../flow", "none"])
async def test_no_name_leaves_the_directory(tmp_path: Path, dag: str) -> None:
    host = Host(tmp_path / "home")
    (tmp_path / "home" / "flow.yaml").write_text(QUICK)
    async with host.launcher() as launcher:
        with pytest.raises((NotFound, DefinitionError)):
            await launcher.start(StartRequest(dag=dag))


async def test_what_cannot_run_leaves_no_record(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("cycle", "steps: [{id: a, run: 'true', depends: [b]}, {id: b, run: 'true', depends: [a]}]\ntype: graph")
    async with host.launcher() as launcher:
        with pytest.raises(DefinitionError):
            await launcher.start(StartRequest(dag="cycle"))
        with pytest.raises(InvalidRequest):
            await launcher.start(StartRequest(text=QUICK, name="flow", run_id="no/slash"))
        assert launcher.places.records.names() == []


async def test_a_failed_run_is_retried_in_place_and_started_anew(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    go, out = tmp_path / "go", tmp_path / "out"
    host.dag("flow", f"steps: [{{id: a, run: 'echo a >> {out}'}}, {{id: b, run: 'echo b >> {out}; test -e {go}'}}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, run, RunStatus.FAILED)
        go.touch()
        await launcher.retry(run, actor="me")
        await _ended(launcher, run, RunStatus.SUCCEEDED)
        assert lines(out) == ["a", "b", "b"]
        new, queued = await launcher.reschedule(run, actor="me")
        assert not queued
        await _ended(launcher, new, RunStatus.SUCCEEDED)
        await launcher.delete(run)
        with pytest.raises(NotFound):
            await launcher.delete(run)


async def test_a_retry_of_a_named_queue_waits_in_it(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    go = tmp_path / "go"
    host.dag("flow", f"queue: q\nsteps: [{{id: a, run: 'test -e {go}'}}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, run, RunStatus.FAILED)
        go.touch()
        await launcher.retry(run, actor="me")
        assert status(launcher, run) is RunStatus.QUEUED
        with pytest.raises(Conflict):
            await launcher.retry(run, actor="me")
        with host.scheduler():
            await _ended(launcher, run, RunStatus.SUCCEEDED)


async def test_a_step_of_a_child_is_retried(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    go, out = tmp_path / "go", tmp_path / "out"
    host.dag(
        "flow",
        "steps: [{id: call, action: dag.run, with: {dag: child}}]\n---\n"
        f"name: child\nsteps: [{{id: a, run: 'echo a >> {out}; test -e {go}'}}]",
    )
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, run, RunStatus.FAILED)
        (child,) = document(launcher, run)["nodes"][0]["children"]
        go.touch()
        await launcher.retry(run, actor="me", step="a", child=child["dagRunId"])
        await until(lambda: lines(out) == ["a", "a"])
        await until(lambda: not any(mark.is_alive() for mark in launcher.places.running.everywhere()))


async def test_people_approve_push_back_and_reject(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    out = tmp_path / "out"
    host.dag(
        "flow",
        f"steps:\n  - {{id: a, run: 'echo a >> {out}', approval: {{input: [why]}}}}\n"
        f"  - {{id: b, depends: [a], run: 'echo $why >> {out}'}}\n",
    )
    async with host.launcher() as launcher:
        with host.scheduler():
            run = await launcher.start(StartRequest(dag="flow"))
            await _ended(launcher, run, RunStatus.WAITING)
            assert await launcher.push_back(run, "a", {}, actor="me")
            await until(lambda: lines(out) == ["a", "a"])
            await _ended(launcher, run, RunStatus.WAITING)
            assert await launcher.approve(run, "a", {"why": "because"}, actor="me")
            await _ended(launcher, run, RunStatus.SUCCEEDED)
            assert lines(out) == ["a", "a", "because"]
            with pytest.raises(Conflict):
                await launcher.approve(run, "a", {}, actor="me")
            other = await launcher.start(StartRequest(dag="flow"))
            await _ended(launcher, other, RunStatus.WAITING)
            await launcher.reject(other, "a", "no", actor="me")
            await _ended(launcher, other, RunStatus.REJECTED)


async def test_a_human_task_is_completed(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", "steps: [{id: ask, action: human.task, with: {prompt: ready?}}]")
    async with host.launcher() as launcher:
        with host.scheduler():
            run = await launcher.start(StartRequest(dag="flow"))
            await _ended(launcher, run, RunStatus.WAITING)
            assert await launcher.complete_task(run, "ask", {}, actor="me")
            await _ended(launcher, run, RunStatus.SUCCEEDED)


async def test_a_step_of_a_finished_run_is_corrected(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.dag("flow", "steps: [{id: a, run: 'false'}]")
    async with host.launcher() as launcher:
        run = await launcher.start(StartRequest(dag="flow"))
        await _ended(launcher, run, RunStatus.FAILED)
        await launcher.set_step_status(run, "a", StepStatus.SUCCEEDED, actor="me")
        assert status(launcher, run) is RunStatus.SUCCEEDED
        with pytest.raises(NotFound):
            await launcher.set_step_status(run, "none", StepStatus.FAILED, actor="me")
