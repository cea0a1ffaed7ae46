"""The hand-written manifests: nothing is lost on the way to the golden files, and what they start works as documented.

The rules for pods, fields and network are in `test_pods`, which holds them against the chart too.
"""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from ruamel.yaml import YAML

from secure_dagu.cli.main import COMMANDS, parse
from tests.deploy.certmanager import signed
from tests.deploy.charts import CHART, ROOT, Document, documents, one, pod_of
from tests.deploy.manifests import MANIFESTS, OVERLAYS, RENDERED, kustomization, overlay, reached
from tests.deploy.node import Node, secret
from tests.deploy.operating import executed, first_admin
from tests.ports import free_port
from tests.system.hosts import PROGRAM, Host

NAME = "secure-dagu-coordinator"
README = (MANIFESTS / "README.md").read_text()
HASH = r"-[bcdfghkmt2456789]{10}\b"
"""What kustomize puts behind the name of a generated ConfigMap."""

overlays = pytest.mark.parametrize("name", OVERLAYS)


def _part(wanted: Any, found: Any) -> bool:
    """Say whether everything in `wanted` is in `found`, which may have more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and _part(wanted[key], found[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and all(any(_part(each, other) for other in found) for each in wanted)
    return bool(wanted == found)


def _names(found: list[Document]) -> list[tuple[str, str]]:
    return sorted((item["kind"], item["metadata"]["name"]) for item in found)


@overlays
def test_every_resource_of_an_overlay_is_in_its_golden_file_whole(name: str) -> None:
    wanted, generated = [], {}
    for folder in reached(OVERLAYS[name]):
        said = kustomization(folder)
        assert said["namespace"] == "secure-dagu"
        files = {folder / file for file in said["resources"] if (folder / file).is_file()}
        assert files == set(folder.glob("*.yaml")) - {folder / "kustomization.yaml"}, "a file that nothing names"
        for file in sorted(files):
            wanted += documents(file.read_text())
        for settings in said.get("configMapGenerator", []):
            [(key, file)] = [each.split("=") for each in settings["files"]]
            generated[settings["name"]] = {key: (folder / file).read_text()}
    text = (RENDERED / f"{name}.yaml").read_text()
    for known in generated:
        text, times = re.subn(rf"\b{known}{HASH}", known, text)
        assert times == 2, f"{known} is made once and mounted once"
    found = documents(text)
    maps = [{"kind": "ConfigMap", "metadata": {"name": key}, "data": data} for key, data in generated.items()]
    assert _names(found) == _names([*wanted, *maps])
    for item in [*wanted, *maps]:
        here = one(found, item["kind"], item["metadata"]["name"])
        assert _part(item, here), f"{item['kind']} {item['metadata']['name']} is different in the golden file"
        assert item["kind"] == "Namespace" or here["metadata"]["namespace"] == "secure-dagu"


def test_every_golden_file_has_its_overlay() -> None:
    assert {file.stem for file in RENDERED.iterdir()} == set(OVERLAYS)


def _settings(found: list[Document], kind: str, name: str) -> Any:
    pod = pod_of(one(found, kind, name))
    assert pod is not None
    mounted = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "config")["configMap"]["name"]
    return YAML(typ="safe").load(one(found, "ConfigMap", mounted)["data"]["dagu.yaml"])


@overlays
def test_whatever_a_worker_dials_is_a_service_advertised_and_in_the_certificate(name: str) -> None:
    found = overlay(name)
    host = f"{NAME}.secure-dagu.svc.cluster.local"
    assert one(found, "Service", NAME)["spec"]["ports"][0]["port"] == 50055
    assert _settings(found, "StatefulSet", NAME)["coordinator"]["advertise"] == host
    for pool in (item["metadata"]["name"] for item in found if item["kind"] == "Deployment"):
        assert _settings(found, "Deployment", pool)["worker"]["coordinators"] == [f"{host}:50055"]
    servers = [item["spec"] for item in found if item["kind"] == "Certificate" and "dnsNames" in item["spec"]]
    assert [host in spec["dnsNames"] for spec in servers] == ([True] if name == "cert-manager" else [])


def _commands(program: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


def _made_as_documented(folder: Path) -> dict[str, Document]:
    """Run the README's lines in a folder; return the Secrets that its `kubectl create` makes of their files."""
    for words in _commands("secure-dagu"):
        if "pki" in words:
            done = subprocess.run(
                [PROGRAM, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
    made = {}
    for words in _commands("kubectl"):
        if "create" in words:
            assert words[:5] == ["-n", "secure-dagu", "create", "secret", "generic"]
            files = [word.removeprefix("--from-file=").split("=") for word in words[6:]]
            made[words[5]] = secret(**{key: (folder / path).read_bytes() for key, path in files})
    return made


def test_what_the_guide_makes_is_what_the_manifests_mount_and_nothing_more(tmp_path: Path) -> None:
    made = _made_as_documented(tmp_path)
    pods = [pod for item in overlay("gpu-pool") if (pod := pod_of(item)) is not None]
    mounted = {
        volume["secret"]["secretName"] for pod in pods for volume in pod["spec"]["volumes"] if "secret" in volume
    }
    assert set(made) == mounted
    read = re.findall(r"/etc/dagu/tls/([\w.]+)", (RENDERED / "gpu-pool.yaml").read_text())
    assert {key for item in made.values() for key in item["data"]} == set(read)
    assert not any("ca.key" in path for words in _commands("kubectl") for path in words), "the CA's key travels"
    for words in _commands("kubectl"):
        for path in (ROOT / word for word in words if word.startswith("deploy/")):
            assert path.exists(), path
    for words in _commands("secure-dagu"):
        assert parse(words).command in COMMANDS


def test_what_the_guide_makes_ends_when_it_says(tmp_path: Path) -> None:
    made = _made_as_documented(tmp_path)
    lives = {}
    for name, item in made.items():
        leaf = x509.load_pem_x509_certificate(base64.b64decode(item["data"]["tls.crt"]))
        lives[name] = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days
    listed = x509.load_pem_x509_crl(base64.b64decode(made["coordinator-tls"]["data"]["ca.crl"]))
    assert listed.next_update_utc is not None
    lives["list"] = (listed.next_update_utc - listed.last_update_utc).days
    said = re.search(
        r"coordinator's certificate ends after (\d+) days, a worker's after (\d+), and the list after (\d+)", README
    )
    assert said is not None
    names = ("coordinator-tls", "worker-general-tls", "list")
    assert [lives[name] for name in names] == [int(days) for days in said.groups()]


def test_the_pools_work_as_documented_and_strangers_are_refused(tmp_path: Path) -> None:
    found = overlay("gpu-pool")
    node = Node(tmp_path / "node", found, _made_as_documented(tmp_path))
    beside = Node(node.root, found, node.secrets, ports=node.ports | {"8092": free_port()})
    file = tmp_path / "train.yaml"
    file.write_text("worker_selector: {gpu: 'true'}\nsteps:\n  - id: hello\n    run: echo $DAGU_WORKER_ID\n")
    with ExitStack() as stack:
        pod = node.pod("StatefulSet", NAME)
        coordinator = stack.enter_context(pod.service())
        (line,) = (line for line in README.splitlines() if "setup_token" in line)
        assert first_admin(node, executed(pod, line).strip()) == 200
        general = stack.enter_context(node.pod("Deployment", "secure-dagu-worker-general").service())
        operator, dialled = Host(tmp_path / "ca"), f"--coordinators=localhost:{node.ports['50055']}"
        assert "gpu@pod-1" not in operator.ok("workers", "--json", dialled)
        gpu = stack.enter_context(beside.pod("Deployment", "secure-dagu-worker-gpu").service())
        told = operator.ok("workers", "--json", dialled)
        assert "general@pod-1" in told
        assert "gpu@pod-1" in told
        assert "succeeded" in operator.ok("dispatch", str(file), "--follow", dialled)
        ca, ui = str(tmp_path / "ca/pki/ca.crt"), f"localhost:{node.ports['8080']}"
        done = subprocess.run(
            [sys.executable, CHART / "files/refused.py", f"localhost:{node.ports['50055']}", ca, ui, ca],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["refused"] * 3 + ["healthy"]
        for running in (gpu, general, coordinator):
            assert running.stop() == 0, running.text


def test_certificates_as_cert_manager_signs_them_are_taken(tmp_path: Path) -> None:
    found = overlay("cert-manager")
    node = Node(tmp_path, found, signed(found))
    with (
        node.pod("StatefulSet", NAME).service() as coordinator,
        node.pod("Deployment", "secure-dagu-worker-general").service() as worker,  # ready: it has registered
    ):
        assert worker.stop() == 0, worker.text
        assert coordinator.stop() == 0, coordinator.text


def test_a_coordinator_that_was_promised_a_list_does_not_start_without_one(tmp_path: Path) -> None:
    """Otherwise a Secret without `ca.crl` would quietly admit whoever was revoked."""
    made = _made_as_documented(tmp_path)
    del made["coordinator-tls"]["data"]["ca.crl"]
    node = Node(tmp_path / "node", overlay("given-secrets"), made)
    with pytest.raises(AssertionError, match=r"ca\.crl"), node.pod("StatefulSet", NAME).service():
        pass
