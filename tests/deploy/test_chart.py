"""The Helm chart renders to what Kubernetes takes, to what was reviewed, and refuses values that it does not know."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from secure_dagu.cli.main import COMMANDS, parse
from tests.deploy.charts import (
    CHART,
    GOLDEN,
    KUBERNETES,
    SHAPES,
    Document,
    documents,
    helm,
    notes,
    rendered,
    shape,
    template,
)
from tests.deploy.operating import SETUP, TOKEN


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_passes_the_lint(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--kube-version", KUBERNETES, "--values", str(SHAPES[name]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_renders_to_what_was_reviewed(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.yaml").read_text(), (
        "it renders differently: `python -m tests.deploy.charts` writes the golden files anew; read what changed"
    )


def test_every_golden_file_has_its_shape() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(SHAPES)


def _leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)]
    return [path]


FREE = re.compile(r"^(workerPools|networkPolicy\.\w+\.(matchLabels|\w+Selector)|.*\.(annotations|requests|limits)\.)")
"""Below these anything may be said: names of pools, labels of others, annotations, kinds of resources."""


def _values() -> Any:
    return YAML(typ="safe").load((CHART / "values.yaml").read_text())


def test_a_typo_at_any_level_is_refused() -> None:
    """Ask once for a whole file of typos: one unknown key beside every known one."""
    sections = {leaf.rpartition(".")[0] for leaf in _leaves(_values()) if not FREE.match(leaf)}
    words = [word for section in sections for word in ("--set", f"{section}.typpo=1" if section else "typpo=1")]
    done = template(*words)
    assert done.returncode != 0
    for section in sections:
        new = f"at '{'/' if section else ''}{section.replace('.', '/')}': additional properties 'typpo' not allowed"
        old = f"{section or '(root)'}: Additional property typpo is not allowed"  # before Helm 3.18
        assert new in done.stderr or old in done.stderr, f"{section}.typpo was taken:\n{done.stderr}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--set", "peer.insecure=yes"), "insecure"),
        (("--set", "peer.insecure=true"), "peer.insecure needs peer.exception.existingSecret"),
        (("--set", "peer.tls.source=none"), "source"),
        (("--set", "peer.tls.helper.join.enabled=true,deploymentMode=standalone"), "peer.tls.helper.join needs"),
        (("--set", "peer.tls.helper.join.enabled=true,peer.tls.source=certManager"), "peer.tls.helper.join needs"),
        (("--set", "workerPools.general.enrolment=join"), "enrolment join needs peer.tls.helper.join.enabled"),
        (("--set", "worker.enrolment=token"), "enrolment"),
        (("--set", "peer.tls.source=existingSecrets"), "name the Secret in peer.tls.existingSecrets.coordinator"),
        (("--set", "config.settings.peer.insecure=true"), "peer"),
        (("--set", "config.settings.tls.insecure=true"), "tls"),
        (("--set", "extraEnv[0].name=DAGU_PEER_INSECURE,extraEnv[0].value=t"), "extraEnv"),
        (("--set", "extraEnv[0].name=DB_PASSWORD,extraEnv[0].value=x"), "extraEnv"),
        (("--set", "auth.mode=none"), "mode"),
        (("--set", "auth.mode=basic"), "auth.basic.existingSecret"),
        (("--set", "worker.extraVolumes[0].name=x,worker.extraVolumes[0].hostPath.path=/"), "hostPath"),
        (("--set", "worker.drainTimeoutSeconds=600,worker.terminationGracePeriodSeconds=660"), "work is killed"),
        (("--set", "image.digest=sha256:abc"), "digest"),
        (("--set", "workerPools.Big.replicas=1"), "Big"),
        (("--set", "persistence.accessMode=ReadWriteMany"), "accessMode"),
        (("--set", "metrics.serviceMonitor.enabled=true,peer.insecure=true,peer.exception.existingSecret=a,"
          "ui.tls.existingSecret=b"), "proves itself by a certificate"),
    ],
)  # fmt: skip
def test_a_dangerous_or_impossible_value_is_refused(words: tuple[str, ...], why: str) -> None:
    done = template(*words)
    assert done.returncode != 0, done.stdout
    assert why in done.stderr


def test_what_the_cluster_lacks_is_named() -> None:
    done = template("--set", "peer.tls.source=certManager", apis=())
    assert done.returncode != 0
    assert "peer.tls.source certManager needs the API cert-manager.io/v1" in done.stderr


@pytest.mark.parametrize(
    ("release", "words", "service"),
    [
        ("dagu", (), "dagu-secure-dagu-coordinator"),
        ("prod", ("--set", "fullnameOverride=dagu"), "dagu-coordinator"),
        ("my-secure-dagu", (), "my-secure-dagu-coordinator"),
        ("r" * 53, (), None),
    ],
)
def test_whatever_a_worker_dials_is_advertised_and_in_the_certificate(
    release: str, words: tuple[str, ...], service: str | None
) -> None:
    found = documents_of(release, *words)
    services = [item["metadata"]["name"] for item in found if item["kind"] == "Service"]
    dialled = _worker_settings(found)["worker"]["coordinators"]
    host = dialled[0].removesuffix(":50055")
    assert dialled == [f"{host}:50055"]
    assert host.split(".")[0] in services
    assert host.split(".")[1:] == ["flows", "svc", "cluster", "local"]
    assert service is None or host.startswith(f"{service}.")
    assert _settings(found)["coordinator"]["advertise"] == host
    certificate = next(
        item for item in found if item["kind"] == "Certificate" and "server auth" in item["spec"]["usages"]
    )
    assert host in certificate["spec"]["dnsNames"]
    assert all(len(item["metadata"]["name"]) <= 63 for item in found)


def documents_of(release: str, *words: str) -> list[Document]:
    """Return what a release with certificates of cert-manager renders to."""
    done = template("--set", "peer.tls.source=certManager", *words, release=release)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def _settings(found: list[Document]) -> Any:
    text = next(
        item["data"]["dagu.yaml"] for item in found if "coordinator:" in item.get("data", {}).get("dagu.yaml", "")
    )
    return YAML(typ="safe").load(text)


def _worker_settings(found: list[Document]) -> Any:
    text = next(item["data"]["dagu.yaml"] for item in found if "worker:" in item.get("data", {}).get("dagu.yaml", ""))
    return YAML(typ="safe").load(text)


def test_a_longer_drain_waits_longer_for_it() -> None:
    pools = {
        item["metadata"]["labels"]["dagu.sh/worker-pool"]: item
        for item in shape("everything")
        if item["kind"] == "Deployment"
    }
    assert pools["cpu"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 690
    assert pools["gpu"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 7200


PAGE = CHART.parents[2] / "docs/how-to/kubernetes.md"


def test_the_guide_names_values_and_commands_that_there_are() -> None:
    text, values = PAGE.read_text(), _values()
    named = set(re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)[`:=]", text))
    named |= {word for words in re.findall(r"--set (\S+)", text) for word in re.findall(r"(?:^|,)([\w.]+)=", words)}
    named = {name for name in named if name.split(".")[0] in values}
    assert len(named) > 10
    for name in named:
        found = values
        for key in name.split("."):
            assert key in found, f"{name} is no value"
            found = found[key]
    blocks = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 5
    lines = re.findall(r"^secure-dagu (.*)$", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        assert parse(shlex.split(line)).command in COMMANDS, line


def test_notes_and_guide_say_the_commands_that_are_tested(tmp_path: Path) -> None:
    told = notes(tmp_path, "--values", str(SHAPES["joining"]))
    for command in (SETUP, TOKEN):
        assert f"    {command}\n" in told
    assert "secure-dagu join LINE" in told
    text = PAGE.read_text()
    assert f"\n{TOKEN}\n" in text
    assert "\nsecure-dagu join LINE\n" in text


def test_the_values_of_the_guide_are_taken(tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        done = template("--values", str(file))
        assert done.returncode == 0, f"{block}\n{done.stderr}"
