"""Steps in containers, against a small daemon that speaks the Docker Engine API over a real socket."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.errors import ConfigError
from secure_dagu.run.model import RunStatus
from secure_dagu.runner import docker
from tests.runner.executors.dockerd import Dockerd
from tests.runner.harness import HOST_ENV, Seen, run, run_and_stop


@pytest.fixture
async def dockerd(tmp_path: Path) -> AsyncIterator[Dockerd]:
    folder = tmp_path / "inside"
    folder.mkdir()
    async with Dockerd(tmp_path / "docker.sock", folder).running() as daemon:
        yield daemon


def at(daemon: Dockerd) -> dict[str, Any]:
    return {"host_env": {**HOST_ENV, "DOCKER_HOST": f"unix://{daemon.socket}"}}


def failure(seen: Seen) -> str:
    assert seen.status is RunStatus.FAILED
    return str(seen.details()["a"]["error"])


def succeeded(seen: Seen) -> bool:
    assert seen.status is RunStatus.SUCCEEDED, seen.final
    return True


# ── docker.run ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_image_is_run_and_its_output_is_the_steps(dockerd: Dockerd, tmp_path: Path) -> None:
    inputs = "{image: 'tool:1', command: \"sh -c 'echo out; echo err >&2'\", container_name: mine, platform: linux/x}"
    text = f"steps:\n  - name: a\n    action: docker.run\n    env: [{{OWN: 1}}]\n    with: {inputs}\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == "out\n"
    assert seen.logs["a.stderr.log"] == b"err\n"
    (made,) = dockerd.created
    assert (made["name"], made["platform"]) == ("mine", "linux/x")
    assert made["Cmd"] == ["sh", "-c", "echo out; echo err >&2"]
    assert made["Env"] == ["OWN=1"]
    assert dockerd.removed == ["c1"]


async def test_its_exit_code_is_the_steps(dockerd: Dockerd, tmp_path: Path) -> None:
    text = "steps:\n  - name: a\n    action: container.run\n    with: {image: 'tool:1', command: [sh, -c, exit 9]}\n"
    text += "    continue_on: {exit_code: 9}\n  - {name: b, action: noop, depends: a}\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert seen.nodes() == {"a": "failed", "b": "succeeded"}
    assert dockerd.removed == ["c1"]


async def test_much_output_comes_whole_and_in_order(dockerd: Dockerd, tmp_path: Path) -> None:
    text = "steps:\n  - name: a\n    action: docker.run\n    with: {image: 'tool:1', command: [seq, '1', '20000']}\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert seen.out("a").split() == [str(number) for number in range(1, 20001)]


async def test_objects_of_the_api_go_before_what_we_say(dockerd: Dockerd, tmp_path: Path) -> None:
    inputs = (
        "{image: 'tool:1', command: 'true', auto_remove: false, volumes: ['./data:/data:ro', 'named:/n'], "
        "container: {user: '5', cmd: ['echo', hi]}, host: {Privileged: false, binds: ['/x:/y']}, "
        "network: {EndpointsConfig: {n: {}}}}"
    )
    text = "resources: {limits: {cpu: '0.5', memory: 1Mi}}\n"
    text += f"steps: [{{name: a, action: docker.run, with: {inputs}}}]\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert seen.out("a") == "hi\n"
    (made,) = dockerd.created
    assert (made["user"], made["cmd"]) == ("5", ["echo", "hi"])
    assert "Cmd" not in made
    limits = {"NanoCpus": 500_000_000, "Memory": 2**20}
    assert made["HostConfig"] == {"Privileged": False, "binds": ["/x:/y"], **limits}
    assert made["NetworkingConfig"] == {"EndpointsConfig": {"n": {}}}
    assert dockerd.removed == []


async def test_a_running_container_is_entered_and_stays(dockerd: Dockerd, tmp_path: Path) -> None:
    await dockerd.add("web", {"Env": []})
    inputs = "{container_name: web, command: ['sh', '-c', 'echo $X'], exec: {Env: ['X=1'], User: '7'}}"
    seen = await run(f"steps: [{{name: a, action: docker.run, with: {inputs}}}]\n", tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == "1\n"
    assert dockerd.execs["e1"].body["User"] == "7"
    assert dockerd.removed == []


async def test_a_stop_ends_the_container_and_removes_it(dockerd: Dockerd, tmp_path: Path) -> None:
    command = 'trap \\"echo asked > gone; exit\\" TERM; echo ready; sleep 60 & wait'
    text = (
        f'steps:\n  - name: a\n    action: docker.run\n    with: {{image: "tool:1", command: [sh, -c, "{command}"]}}\n'
    )
    seen = await run_and_stop(text, tmp_path / "run", **at(dockerd))
    assert seen.nodes() == {"a": "aborted"}
    assert (tmp_path / "inside" / "gone").read_text() == "asked\n"
    assert dockerd.removed == ["c1"]


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("image", "policy", "pulls", "is_good"),
    [
        ("tool:1", "missing", [], True),
        ("far:1", "missing", ["far:1"], True),
        ("far:1", "always", ["far:1"], True),
        ("tool:1", "always", ["tool:1"], False),
        ("tool:1", "fallback", ["tool:1"], True),
        ("nowhere", "fallback", ["nowhere:latest"], False),
        ("far:1", "never", [], False),
        ("tool:1", "never", [], True),
        ("tool:1", "true", ["tool:1"], False),
        ("far:1", "false", [], False),
    ],
)
async def test_an_image_is_pulled_as_the_policy_says(
    dockerd: Dockerd, tmp_path: Path, image: str, policy: str, pulls: list[str], is_good: bool
) -> None:
    text = f"steps: [{{name: a, action: docker.run, with: {{image: '{image}', pull: {policy}, command: 'true'}}}}]\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert dockerd.pulls == pulls
    assert (seen.status is RunStatus.SUCCEEDED) is is_good
    if not is_good:
        assert "pull access denied" in failure(seen) or "No such image" in failure(seen)


@pytest.mark.parametrize(
    "auths",
    [
        "registry_auths: {docker.io: {username: u, password: '${PW}'}}",
        "registry_auths: {docker.io: {auth: dTpw}}",
        "registry_auths: {docker.io: dTpw}",
        'registry_auths: \'{"docker.io": {"username": "u", "password": "p"}}\'',
        'registry_auths: \'{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}}}\'',
    ],
)
async def test_a_registry_is_told_who_asks(dockerd: Dockerd, tmp_path: Path, auths: str) -> None:
    text = f"env: [{{PW: p}}]\n{auths}\n"
    text += "steps: [{name: a, action: docker.run, with: {image: 'private:1', command: 'true'}}]\n"
    assert succeeded(await run(text, tmp_path / "run", **at(dockerd)))
    told = json.loads(base64.urlsafe_b64decode(dockerd.auths[0] or ""))
    assert told == {"username": "u", "password": "p", "serveraddress": "docker.io"}


async def test_docker_auth_config_is_asked_where_the_dag_says_nothing(dockerd: Dockerd, tmp_path: Path) -> None:
    text = 'env: [{DOCKER_AUTH_CONFIG: \'{"auths": {"docker.io": {"auth": "dTpw"}}}\'}]\n'
    text += "steps: [{name: a, action: docker.run, with: {image: 'private:1', command: 'true'}}]\n"
    assert succeeded(await run(text, tmp_path / "run", **at(dockerd)))


# ── container: of the root ───────────────────────────────────────────────────────────────────────────────────────────


ROOT = """\
type: chain
params: {p: 1}
env: [{MINE: m}]
container:
  image: tool:1
  name: box
  user: '3'
  env: [{C: 'c-${MINE}'}]
  volumes: ['data:/data', './here:/there:rw', '$HOME/x:/x:ro']
  ports: ['8080:80', '127.0.0.1:53:53/udp', '9']
  network: net
  restart_policy: unless-stopped
"""


async def test_all_commands_of_a_run_share_one_container(dockerd: Dockerd, tmp_path: Path) -> None:
    steps = (
        "steps:\n  - {name: a, run: ['echo $p $MINE $C $DAG_RUN_ID-', 'echo [$HOME] [$LANG]'], output: OUT}\n"
        '  - name: b\n    run: |\n      echo "$OUT"\n      echo $DAG_RUN_STEP_NAME\n'
        "  - {name: c, action: exec, with: {command: printenv, args: [C]}}\n"
        "  - {name: d, action: noop}\n"
        "handler_on: {exit: {run: 'echo bye'}}\n"
    )
    seen = await run(ROOT + steps, tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == "1 m c-m run-1-\n[] []\n"
    assert seen.out("b").endswith("\nb\n")
    assert seen.out("c") == "c-m\n"
    assert seen.out("onExit") == "bye\n"
    (made,) = dockerd.created
    assert made["name"] == "box"
    assert made["User"] == "3"
    assert made["Env"] == ["C=c-m"]
    assert made["Labels"] == {"secure-dagu.run": "run-1"}
    binds = made["HostConfig"]["Binds"]
    assert binds[0] == "data:/data"
    assert binds[1].endswith("/here:/there:rw")
    assert binds[1].startswith("/")
    assert binds[2] == "/nonexistent/x:/x:ro"
    assert made["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
        "9/tcp": [{"HostIp": "", "HostPort": ""}],
    }
    assert made["HostConfig"]["NetworkMode"] == "net"
    assert made["HostConfig"]["RestartPolicy"] == {"Name": "unless-stopped"}
    assert dockerd.removed == ["c1"]


async def test_a_run_without_commands_makes_no_container(dockerd: Dockerd, tmp_path: Path) -> None:
    seen = await run(
        "container: {image: 'tool:1'}\nsteps: [{name: a, action: noop}]\n", tmp_path / "run", **at(dockerd)
    )
    assert succeeded(seen)
    assert dockerd.asked == []


async def test_steps_side_by_side_start_it_once(dockerd: Dockerd, tmp_path: Path) -> None:
    steps = ", ".join(f"{{name: {name}, run: echo {name}}}" for name in "abc")
    text = f"container: {{image: 'tool:1'}}\nsteps: [{steps}]\n"
    assert succeeded(await run(text, tmp_path / "run", **at(dockerd)))
    assert len(dockerd.created) == 1


async def test_a_container_may_be_kept(dockerd: Dockerd, tmp_path: Path) -> None:
    text = "container: {image: 'tool:1', keep_container: true}\nsteps: [{name: a, run: echo 1}]\n"
    assert succeeded(await run(text, tmp_path / "run", **at(dockerd)))
    assert dockerd.removed == []


async def test_a_failing_command_fails_its_step(dockerd: Dockerd, tmp_path: Path) -> None:
    text = "container: {image: 'tool:1'}\nsteps: [{name: a, run: ['true', 'echo oops >&2; exit 4', 'echo no']}]\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert failure(seen).startswith("command 2 failed: exit status 4")
    assert "oops" in failure(seen)
    assert dockerd.removed == ["c1"]


async def test_a_script_fails_at_its_first_failing_command_and_may_choose_its_interpreter(
    dockerd: Dockerd, tmp_path: Path
) -> None:
    text = (
        "container: {image: 'tool:1'}\nsteps:\n"
        "  - name: a\n    run: |\n      false\n      echo unreached\n    continue_on: failed\n"
        '  - name: b\n    run: |\n      #!/usr/bin/env -S sed -n 2p\n      second line\'s "text"\n'
    )
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert seen.nodes() == {"a": "failed", "b": "succeeded"}
    assert "a.stdout.log" not in seen.logs or "unreached" not in seen.out("a")
    assert seen.out("b") == 'second line\'s "text"\n'
    assert os.listdir(tmp_path / "inside") == []


@pytest.mark.parametrize(
    ("shell", "wanted"), [("bash -o pipefail", "pipefail"), ("[bash, -o, pipefail, -c]", "pipefail")]
)
async def test_a_shell_wraps_the_commands(dockerd: Dockerd, tmp_path: Path, shell: str, wanted: str) -> None:
    text = f"container: {{image: 'tool:1', shell: {shell if shell[0] == '[' else [shell]}}}\n"
    seen = await run(text + "steps: [{name: a, run: 'echo $SHELLOPTS'}]\n", tmp_path / "run", **at(dockerd))
    assert wanted in seen.out("a")


async def test_the_shell_of_the_dag_counts_inside_and_that_of_the_host_does_not(
    dockerd: Dockerd, tmp_path: Path
) -> None:
    steps = "container: {image: 'tool:1'}\nsteps: [{name: a, run: 'echo $0'}]\n"
    seen = await run(f"shell: bash -u\n{steps}", tmp_path / "1", **at(dockerd))
    assert seen.out("a") == "bash\n"
    host = at(dockerd)["host_env"] | {"SHELL": "/nonexistent/zsh"}
    seen = await run(steps, tmp_path / "2", host_env=host)
    assert seen.out("a") == "/bin/sh\n"


async def test_a_stopped_command_is_asked_to_end_inside(dockerd: Dockerd, tmp_path: Path) -> None:
    command = "trap 'echo asked > gone; exit' TERM; echo ready; sleep 60 & wait"
    text = f'container: {{image: "tool:1"}}\nsteps:\n  - name: a\n    run: "{command}"\n'
    seen = await run_and_stop(text, tmp_path / "run", **at(dockerd))
    assert seen.nodes() == {"a": "aborted"}
    assert (tmp_path / "inside" / "gone").read_text() == "asked\n"
    assert dockerd.removed == ["c1"]


async def test_a_command_that_does_not_listen_is_killed_and_the_container_serves_on(
    dockerd: Dockerd, tmp_path: Path
) -> None:
    text = (
        "type: chain\nmax_clean_up_time_sec: 1\ncontainer: {image: 'tool:1'}\nsteps:\n"
        "  - {name: a, run: \"trap '' TERM; sleep 60 & wait; sleep 60\", timeout_sec: 1, continue_on: failed}\n"
        "  - {name: b, run: echo still here}\n"
    )
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert "timed out" in seen.details()["a"]["error"]
    assert seen.out("b") == "still here\n"
    assert dockerd.execs["e2"].code == 137


# ── readiness ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_container_is_waited_for_until_it_is_healthy(dockerd: Dockerd, tmp_path: Path) -> None:
    command = "[sh, -c, 'sleep 0.3; touch ready; sleep 60']"
    text = (
        f"container: {{image: 'tool:1', startup: command, command: {command}, wait_for: healthy, "
        "healthcheck: {test: 'test -e ready', interval: 1s, retries: 3}}\nsteps: [{name: a, run: ls}]\n"
    )
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == "ready\n"
    check = {"Test": ["CMD-SHELL", "test -e ready"], "Interval": 1_000_000_000, "Retries": 3}
    assert dockerd.created[0]["Healthcheck"] == check


async def test_a_line_of_its_log_may_be_waited_for(dockerd: Dockerd, tmp_path: Path) -> None:
    command = "[sh, -c, 'echo starting; sleep 0.3; touch ready; echo now on port 80; sleep 60']"
    text = (
        f"container: {{image: 'tool:1', startup: command, command: {command}, log_pattern: 'on port \\d+'}}\n"
        "steps: [{name: a, run: ls}]\n"
    )
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert seen.out("a") == "ready\n"


@pytest.mark.parametrize(
    ("command", "rest", "word"),
    [("[sh, -c, exit 5]", "", "exit code 5"), ("[sh, -c, 'sleep 0.5; exit']", ", log_pattern: never", "logged")],
)
async def test_a_container_that_ends_before_it_is_ready_fails_the_step(
    dockerd: Dockerd, tmp_path: Path, command: str, rest: str, word: str
) -> None:
    text = f"container: {{image: 'tool:1', startup: command, command: {command}, wait_for: healthy{rest}, "
    text += "healthcheck: {test: 'false'}}\n" if not rest else "healthcheck: {test: 'true'}}\n"
    seen = await run(text + "steps: [{name: a, run: ls}]\n", tmp_path / "run", **at(dockerd))
    assert word in failure(seen)
    assert dockerd.removed == ["c1"]


# ── container: of a step ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_step_has_a_container_of_its_own_for_all_its_commands(dockerd: Dockerd, tmp_path: Path) -> None:
    text = (
        "type: chain\nsteps:\n"
        f"  - {{name: a, run: ['touch f', ls, pwd], container: {{image: 'tool:1'}}, working_dir: {tmp_path}/inside}}\n"
        "  - {name: b, run: echo here, container: {image: 'tool:1'}}\n  - {name: c, run: 'echo $HOME'}\n"
    )
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == f"f\n{tmp_path}/inside\n"
    assert len(dockerd.created) == 2
    assert len(dockerd.removed) == 2
    assert seen.out("c") == "/nonexistent\n"


@pytest.mark.parametrize("container", ["web", "{exec: web, user: '9', working_dir: /tmp, env: [{X: 1}]}"])
async def test_a_step_may_enter_a_running_container(dockerd: Dockerd, tmp_path: Path, container: str) -> None:
    await dockerd.add("web", {"Env": []})
    text = f"steps: [{{name: a, run: 'echo x$X; pwd', container: {container}}}]\n"
    seen = await run(text, tmp_path / "run", **at(dockerd))
    assert succeeded(seen)
    assert seen.out("a") == (f"x\n{tmp_path}/inside\n" if container == "web" else "x1\n/tmp\n")
    assert dockerd.created == []
    assert dockerd.removed == []


async def test_a_container_that_is_not_there_is_told(dockerd: Dockerd, tmp_path: Path) -> None:
    seen = await run("steps: [{name: a, run: ls, container: none}]\n", tmp_path / "run", **at(dockerd))
    assert "No such container: none" in failure(seen)


async def test_a_daemon_that_is_not_there_is_told(tmp_path: Path) -> None:
    env = {**HOST_ENV, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    seen = await run("container: {image: x}\nsteps: [{name: a, run: ls}]\n", tmp_path, host_env=env)
    assert "does not answer" in failure(seen)


# ── which daemon ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, "unix:///var/run/docker.sock"),
        ({"DOCKER_HOST": "unix:///x"}, "unix:///x"),
        ({"DAGU_CONTAINER_RUNTIME": "docker", "DAGU_PODMAN_HOST": "unix:///p"}, "unix:///var/run/docker.sock"),
        ({"DAGU_CONTAINER_RUNTIME": "podman", "DAGU_PODMAN_HOST": "unix:///p"}, "unix:///p"),
    ],
)
def test_the_environment_of_the_host_chooses_the_daemon(env: dict[str, str], wanted: str) -> None:
    assert docker.daemon_of(env) == wanted


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:2375", "ssh://host", "nonsense", "unix://"])
async def test_a_daemon_over_a_network_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        async with docker.connected(address):
            pass
