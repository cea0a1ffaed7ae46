"""`rm` and `cleanup` at a coordinator: finished runs go with all that they left there, and only those."""

from __future__ import annotations

from pathlib import Path

from tests.system.conftest import Cluster

WORK = """\
steps:
  - id: make
    run: echo done; printf x > "$DAG_RUN_ARTIFACTS_DIR/a.txt"
"""
GATED = "steps:\n  - id: wait\n    run: while [ ! -e {gate} ]; do sleep 0.05; done\n"


def files_of(cluster: Cluster, run_id: str) -> list[Path]:
    """Return what the coordinator's host keeps of a run."""
    return [path for path in cluster.host.home.rglob("*") if path.is_file() and run_id in str(path)]


def test_finished_runs_of_a_dag_are_removed_at_the_coordinator(running: Cluster, tmp_path: Path) -> None:
    host, gate = running.host, tmp_path / "gate"
    for name, text in (("work", WORK), ("gated", GATED.format(gate=gate)), ("other", WORK)):
        (tmp_path / f"{name}.yaml").write_text(text)

    def dispatch(name: str, run_id: str, *more: str) -> None:
        host.ok("dispatch", str(tmp_path / f"{name}.yaml"), "--run-id", run_id, running.operator, *more)

    for run_id in ("w-one", "w-two"):
        dispatch("work", run_id, "--follow")
    dispatch("other", "o-one", "--follow")
    dispatch("gated", "g-one")
    assert files_of(running, "w-one")
    rm = ("rm", "work", "--history", running.operator)
    dry = host.ok(*rm, "--dry-run")
    assert dry.splitlines() == ['Dry run: Would delete 2 run(s) for DAG "work":', "  - w-two", "  - w-one"]
    refused = host.run(*rm, stdin="n\n")
    assert 'all history for DAG "work" at the coordinator' in refused.stdout
    assert refused.stdout.endswith("Cancelled.\n")
    assert host.ok(*rm, "--older-than", "1h", "--force") == 'Deleted 0 run(s) for DAG "work" at the coordinator.\n'
    assert host.ok(*rm, "--force") == 'Deleted 2 run(s) for DAG "work" at the coordinator.\n'
    assert not files_of(running, "w-one")
    assert not files_of(running, "w-two")
    assert files_of(running, "o-one")
    listed = host.ok("status", running.operator)
    assert "w-one" not in listed
    assert "o-one" in listed
    active = host.ok("rm", "gated", "--history", "--force", running.operator)
    assert active == 'Deleted 0 run(s) for DAG "gated" at the coordinator.\n'
    gate.touch()
    host.ok("status", "gated", "-r", "g-one", running.operator)
    cleaned = host.ok("cleanup", "other", "--yes", running.operator)
    assert cleaned == 'Deleted 1 run(s) for DAG "other" at the coordinator.\n'
    wrong = host.run("rm", "other", "--definition", "--force", running.operator)
    assert wrong.returncode == 1
    assert "--definition is about this host" in wrong.stderr
    told = host.ok("audit", "show", "--log", "coordinator", "--action", "run.deleted")
    assert [line.split("run:")[1].split()[0] for line in told.splitlines()] == [
        "work/w-two",
        "work/w-one",
        "other/o-one",
    ]
