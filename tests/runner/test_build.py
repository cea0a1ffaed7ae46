"""Build DAGs: what is reused, what is made again, and that a file is the old one or the new one (section 3.17)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from secure_dagu.run.model import RunStatus
from secure_dagu.runner import build_store
from tests.runner.building import CHAIN, ONE, Site, told
from tests.runner.harness import HOST_ENV, Seen, pid_in


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_what_was_made_is_reused_until_something_changes(site: Site) -> None:
    first = await site.run()
    assert told(first) == "execute (manifest_missing)"
    assert first.details()["make"]["build"]["phase"] == "committed"
    assert first.nodes() == {"make": "succeeded"}
    assert site.made.read_text() == "HELLO"

    again = await site.run()
    node = again.details()["make"]
    assert told(again) == "reuse (matched)"
    assert node["word"] == "succeeded"
    assert (node["stdout"], node["stderr"]) == ("", "")
    assert node["build"]["producerRun"] == "demo/run-1"
    assert node["build"]["fingerprint"] == first.details()["make"]["build"]["fingerprint"]
    assert node["build"]["materializationKey"] == first.details()["make"]["build"]["materializationKey"]
    assert site.leftovers() == []


async def test_a_changed_input_is_noticed_by_content_alone(site: Site) -> None:
    await site.run()
    os.utime(site.src / "in.txt", (0, 0))
    assert told(await site.run()) == "reuse (matched)"
    (site.src / "in.txt").write_text("other")
    changed = await site.run()
    assert told(changed) == "execute (input_changed)"
    assert changed.details()["make"]["build"]["detail"] == "src"
    assert site.made.read_text() == "OTHER"


async def test_a_missing_or_changed_output_is_made_again(site: Site) -> None:
    await site.run()
    site.made.unlink()
    assert told(await site.run()) == "execute (output_missing)"
    site.made.write_text("tampered")
    assert told(await site.run()) == "execute (output_changed)"
    assert site.made.read_text() == "HELLO"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("echo ran", "echo ran again"),
        ("    run:", "    env: [{LANG: C}]\n    run:"),
        ("steps:", "env: [{MODE: fast}]\nsteps:"),
        ("steps:", "params: [{LEVEL: 3}]\nsteps:"),
        ("steps:", "shell: bash\nsteps:"),
        ("{name: src, path: in.txt}", "{name: src, path: in.txt}, {name: more, path: more.txt}"),
        ("    run:", "    working_dir: .\n    run:"),
    ],
)
async def test_a_changed_recipe_is_noticed(site: Site, before: str, after: str) -> None:
    (site.src / "more.txt").write_text("more")
    await site.run()
    changed = ONE.replace(before, after)
    expected = "reuse (matched)" if "working_dir" in after else "execute (recipe_changed)"
    assert told(await site.run(changed)) == expected
    assert told(await site.run(changed)) == "reuse (matched)"


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace("    run:", "    retry_policy: {limit: 1, interval_sec: 0}\n    description: x\n    run:"),
        ONE.replace("steps:", "description: other\nsteps:"),
    ],
)
async def test_what_is_no_part_of_a_recipe_changes_nothing(site: Site, text: str) -> None:
    await site.run()
    assert told(await site.run(text)) == "reuse (matched)"


async def test_other_host_variables_and_other_runs_change_nothing(site: Site) -> None:
    text = ONE.replace("    run:", "    env: [{TMP_HERE: '${context.paths.work_dir}/x'}]\n    run:")
    await site.run(text)
    seen = await site.run(text, host_env={**HOST_ENV, "TERM": "xterm"}, attempt="a2")
    assert told(seen) == "reuse (matched)"


async def test_no_reuse_executes_and_still_commits_safely(site: Site) -> None:
    await site.run()
    assert told(await site.run(changes={"no_reuse": True})) == "execute (reuse_disabled)"
    assert told(await site.run()) == "reuse (matched)"


async def test_files_order_steps_and_equal_results_are_reused(site: Site) -> None:
    (site.src / "sub").mkdir()
    seen = await site.run(CHAIN)
    assert seen.nodes() == {"last": "succeeded", "first": "succeeded", "read": "succeeded"}
    assert (site.src / "c.txt").read_text() == "h\nh\n"
    assert told(seen, "read") == "always (ineligible)"
    out = (site.base / "run1" / "logs" / "read.stdout.log").read_text()
    assert out == f"h\nh\n{site.src}/b.txt\n"

    (site.src / "in.txt").write_text("hallo")  # the first step runs, but makes the same file again
    seen = await site.run(CHAIN)
    assert told(seen, "first") == "execute (input_changed)"
    assert told(seen, "last") == "reuse (matched)"


async def test_an_explicit_dependency_that_ran_forces_execution(site: Site) -> None:
    text = CHAIN.replace(
        "    inputs: [{name: x, path: b.txt}]", "    depends: plain\n    inputs: [{name: x, path: b.txt}]"
    )
    text += "  - id: plain\n    run: echo\n"
    (site.src / "sub").mkdir()
    await site.run(text)
    seen = await site.run(text)
    assert told(seen, "first") == "reuse (matched)"
    assert told(seen, "last") == "execute (control_dependency_ran)"


async def test_an_explicit_dependency_that_was_reused_forces_nothing(site: Site) -> None:
    text = CHAIN.replace(
        "    inputs: [{name: x, path: b.txt}]", "    depends: first\n    inputs: [{name: x, path: b.txt}]"
    )
    (site.src / "sub").mkdir()
    await site.run(text)
    assert told(await site.run(text), "last") == "reuse (matched)"


@pytest.mark.parametrize(
    "extra",
    [
        "    repeat_policy: {repeat: true, limit: 1, interval_sec: 0}\n",
        "    output: SEEN\n",
        "    stdout: {outputs: seen}\n",
        "    approval: {prompt: ok}\n",
    ],
)
async def test_steps_with_more_than_a_file_always_run(site: Site, extra: str) -> None:
    text = ONE.replace("    run:", extra + "    run:")
    await site.run(text)
    assert told(await site.run(text)) == "always (ineligible)"


async def test_a_run_with_secrets_reuses_nothing(site: Site) -> None:
    text = "secrets: [{name: S, provider: env, key: PATH}]" + ONE
    await site.run(text)
    assert told(await site.run(text)) == "always (ineligible)"
    assert site.made.read_text() == "HELLO"


async def test_an_unmet_precondition_is_asked_before_the_inputs(site: Site) -> None:
    text = ONE.replace("in.txt", "missing.txt").replace("    run:", '    preconditions: "false"\n    run:')
    seen = await site.run(text)
    assert seen.nodes() == {"make": "skipped"}
    assert told(seen) == "none (precondition_not_met)"


async def test_a_precondition_that_cannot_be_evaluated_fails_the_step(site: Site) -> None:
    text = ONE.replace("    run:", "    preconditions: [{eval: '`exit 3`', expected: x}]\n    run:")
    seen = await site.run(text)
    assert seen.nodes() == {"make": "failed"}
    assert told(seen) == "none (precondition_error)"


async def test_a_missing_input_fails_the_step(site: Site) -> None:
    (site.src / "in.txt").unlink()
    seen = await site.run()
    assert seen.nodes() == {"make": "failed"}
    assert told(seen) == "none (input_missing)"
    assert "src" in seen.details()["make"]["error"]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
async def test_inputs_are_plain_files(site: Site, kind: str) -> None:
    source = site.src / "in.txt"
    source.rename(site.src / "real.txt")
    if kind == "link":
        source.symlink_to("real.txt")
    elif kind == "folder":
        source.mkdir()
    else:
        os.mkfifo(source)
    seen = await site.run()
    assert seen.nodes() == {"make": "failed"}
    assert told(seen) == "none (evaluation_failed)"


async def test_an_output_that_is_a_link_is_refused(site: Site) -> None:
    site.made.parent.mkdir()
    site.made.symlink_to(site.src / "in.txt")
    seen = await site.run()
    assert told(seen) == "none (evaluation_failed)"
    assert (site.src / "in.txt").read_text() == "hello"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo half > ${outputs.out}; exit 3", "exit status 3"),
        ("echo nothing", "has not made its output"),
        ("ln -s ${inputs.src} ${outputs.out}", "link"),
        ("mkdir ${outputs.out}", "no plain file"),
        ("echo x > ${outputs.out}; echo changed > ${inputs.src}", "changed while the step ran"),
        ('echo x > ${outputs.out}; echo a=b >> "$DAGU_OUTPUT_FILE"', "undeclared step output"),
    ],
)
async def test_a_failure_leaves_the_old_file_and_its_manifest(site: Site, script: str, error: str) -> None:
    await site.run()
    text = ONE.replace("tr a-z A-Z < ${inputs.src} > ${outputs.out}; echo ran", script)
    seen = await site.run(text)
    assert seen.nodes() == {"make": "failed"}
    assert error in seen.details()["make"]["error"]
    assert seen.details()["make"]["build"]["phase"] == "ended"
    assert site.made.read_text() == "HELLO"
    if "changed while" in error:
        assert told(seen) == "execute (input_changed_during_execution)"
        (site.src / "in.txt").write_text("hello")
    assert told(await site.run()) == "reuse (matched)"
    assert site.leftovers() == []


async def test_every_attempt_has_a_staging_file_of_its_own_beside_the_final_one(site: Site) -> None:
    text = ONE.replace(
        "run: tr a-z A-Z < ${inputs.src} > ${outputs.out}; echo ran",
        "retry_policy: {limit: 1, interval_sec: 0}\n"
        "    env: [{TO: '${outputs.out}'}]\n"
        "    run: test ! -e $TO && echo x > $TO && echo $TO >> ../staged && test $(wc -l < ../staged) = 2",
    )
    text = "working_dir: ." + text.replace("../staged", f"{site.base}/staged")
    seen = await site.run(text)
    assert seen.nodes() == {"make": "succeeded"}
    first, second = map(Path, (site.base / "staged").read_text().split())
    assert first != second
    assert first.parent == second.parent == site.made.parent
    assert first.name.endswith(".made.txt")


async def test_the_staging_path_is_known_to_commands_and_env_only(site: Site) -> None:
    text = ONE.replace("    run:", "    preconditions: [{condition: '${outputs.out}', expected: 're:^[$]'}]\n    run:")
    assert (await site.run(text)).nodes() == {"make": "succeeded"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "type: build\nsteps:\n"
            "  - {id: a, outputs: [{name: o, path: x}], run: 'true'}\n"
            "  - {id: b, outputs: [{name: o, path: ./y/../x}], run: 'true'}\n",
            "multiple producers: a and b",
        ),
        (
            "type: build\nsteps:\n"
            "  - {id: a, inputs: [{name: i, path: y}], outputs: [{name: o, path: x}], run: 'true'}\n"
            "  - {id: b, inputs: [{name: i, path: x}], outputs: [{name: o, path: y}], run: 'true'}\n",
            "cyclic",
        ),
        ("type: build\nsteps: [{id: a, outputs: [{name: o, path: '${params.x}'}], run: 'true'}]\n", "${params.x}"),
    ],
)
async def test_plans_that_cannot_be_made(site: Site, text: str, error: str) -> None:
    seen = await site.run(text)
    assert seen.status is RunStatus.FAILED
    assert error in seen.final["error"]
    assert not (site.src / "x").exists()


@pytest.mark.parametrize("path", ["{src}/out/../out/made.txt", "../src/out/made.txt"])
async def test_a_stream_must_not_go_to_a_build_path(site: Site, path: str) -> None:
    text = f"working_dir: {site.src}" + ONE.replace("    run:", f"    stderr: {path.format(src=site.src)}\n    run:")
    seen = await site.run(text)
    assert "goes to the build path" in seen.final["error"]
    assert not site.made.exists()


async def test_relative_paths_need_a_directory(site: Site) -> None:
    seen = await site.run(changes={"dag_dir": None})
    assert "working_dir" in seen.final["error"] or "relative" in seen.final["error"]
    assert seen.status is RunStatus.FAILED
    text = f"working_dir: {site.src}" + ONE
    assert (await site.run(text, changes={"dag_dir": None})).status is RunStatus.SUCCEEDED


async def test_a_worker_builds_nothing(site: Site) -> None:
    seen = await site.run(changes={"materializations": None})
    assert seen.status is RunStatus.FAILED
    assert "not on a worker" in seen.final["error"]


async def test_links_among_folders_lead_to_one_path(site: Site) -> None:
    (site.src / "real").mkdir()
    (site.src / "alias").symlink_to("real")
    text = """
type: build
params: [{TO: alias}]
steps:
  - {id: a, outputs: [{name: o, path: "${params.TO}/x"}], run: "echo 1 > ${outputs.o}"}
  - {id: b, inputs: [{name: i, path: real/x}], run: "cat ${inputs.i}"}
  - {id: c, inputs: [{name: i, path: "${steps.a.outputs.o}"}], run: "cat ${inputs.i}"}
"""
    assert (await site.run(text)).status is RunStatus.SUCCEEDED


async def test_a_store_that_cannot_be_used_fails_the_step(site: Site) -> None:
    site.store.parent.mkdir()
    site.store.write_text("in the way")
    seen = await site.run()
    assert seen.nodes() == {"make": "failed"}
    assert told(seen) == "none (store_unavailable)"


async def test_a_stop_while_another_run_makes_the_file(site: Site) -> None:
    holder = build_store.Store(site.store)
    holder.make()
    handle = await holder.lock(str(site.made), exclusive=True, stop=asyncio.Event())
    stop = asyncio.Event()

    class Stopping(Seen):
        def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
            if message == "Step started":
                stop.set()

    seen = await site.run(seen=Stopping(), stop=stop)
    os.close(handle)
    assert seen.nodes() == {"make": "aborted"}
    assert told(seen) == "none (cancelled_before_decision)"
    assert not site.made.exists()


async def test_a_stop_during_the_preconditions(site: Site) -> None:
    stop = asyncio.Event()

    class Stopping(Seen):
        def line_logged(self, level: str, message: str, fields: Mapping[str, str]) -> None:
            if message == "Step started":
                stop.set()

    text = ONE.replace("    run:", "    preconditions: sleep 60\n    run:")
    seen = await site.run(text, seen=Stopping(), stop=stop)
    assert seen.nodes() == {"make": "aborted"}
    assert told(seen) == "none (cancelled_before_decision)"


async def test_two_runs_at_once_make_the_file_once(site: Site) -> None:
    text = ONE.replace("echo ran", f"echo x >> {site.base}/ran; sleep 0.3")
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(site.run(text)) for _ in range(3)]
    assert sorted(told(task.result()) for task in runs) == [
        "execute (manifest_missing)", "reuse (matched)", "reuse (matched)",
    ]  # fmt: skip
    assert (site.base / "ran").read_text() == "x\n"


ENGINE = """
import asyncio, sys
from msgspec.structs import replace
from pathlib import Path
from secure_dagu.runner.runner import execute
from tests.runner.building import CHAIN, ONE, Site, told
from tests.runner.harness import Children, Seen, make_request
text, base, store, src = Path(sys.argv[1]).read_text(), *map(Path, sys.argv[2:])
request = replace(make_request(text, base), materializations=store, dag_dir=src)
asyncio.run(execute(request, Seen(), Children(), stop=asyncio.Event()))
"""


async def test_an_engine_killed_during_the_command_leaves_the_old_file(site: Site) -> None:
    await site.run()
    (site.src / "in.txt").write_text("newer")
    pids, fifo = site.base / "pid", site.base / "fifo"
    os.mkfifo(fifo)
    text = ONE.replace("echo ran", f"test ! -p {fifo} || {{ echo $$ > {pids}; echo go > {fifo}; sleep 60; }}")
    (site.base / "dag.yaml").write_text(text)
    engine = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [sys.executable, "-c", ENGINE, site.base / "dag.yaml", site.base / "killed", site.store, site.src],
        cwd=Path(__file__).parents[2],
    )
    assert await asyncio.to_thread(fifo.read_text) == "go\n"
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    assert site.made.read_text() == "HELLO"
    assert len(site.leftovers()) == 1
    os.kill(pid_in(pids), signal.SIGKILL)
    fifo.unlink()
    seen = await site.run(text)
    assert seen.nodes() == {"make": "succeeded"}
    assert site.made.read_text() == "NEWER"
    assert site.leftovers() == []
