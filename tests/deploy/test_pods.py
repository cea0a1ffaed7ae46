"""Every pod that we ship is restricted, every secret a file from a Secret, every way through the network named."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.deploy import charts
from tests.deploy.charts import APIS, KUBERNETES, Document, pod_of
from tests.deploy.shipped import NAMES, shipped

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""What PodSecurity `restricted` allows."""
PKI = "pki"
"""The one component whose pods have a token."""

CUSTOM = tuple(api.split("/")[0] for api in APIS)

shapes = pytest.mark.parametrize("name", NAMES)


def _pods(found: list[Document]) -> list[tuple[str, Document]]:
    return [(one["metadata"]["name"], pod) for one in found if (pod := pod_of(one)) is not None]


def _component(pod: Document) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


@shapes
def test_kubernetes_knows_every_field(name: str) -> None:
    for document in shipped(name):
        if document["apiVersion"].startswith(CUSTOM):
            continue  # their schemas are not Kubernetes' own; the golden files show them
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@shapes
def test_every_pod_satisfies_pod_security_restricted(name: str) -> None:
    assert len(_pods(shipped(name))) >= 1
    for where, pod in _pods(shipped(name)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert min(spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")) > 10_000, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        assert spec["enableServiceLinks"] is False, f"{where}: a Service called dagu-… would set DAGU_… variables"
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES, where
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, where
            assert security["readOnlyRootFilesystem"] is True, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert set(container["resources"]) == {"requests", "limits"}, where
            assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys(), where
            assert not any("hostPort" in port for port in container.get("ports", [])), where


@shapes
def test_only_what_writes_secrets_has_a_token_and_only_for_named_ones(name: str) -> None:
    found = shipped(name)
    accounts = {one["metadata"]["name"] for one in found if one["kind"] == "ServiceAccount"}
    for where, pod in _pods(found):
        assert pod["spec"]["automountServiceAccountToken"] is (_component(pod) == PKI), where
        assert pod["spec"]["serviceAccountName"] in accounts, where
    for role in (one for one in found if one["kind"] in ("Role", "ClusterRole")):
        assert role["kind"] == "Role"
        for rule in role["rules"]:
            assert rule["resources"] == ["secrets"]
            assert rule["verbs"] == ["create"] or (set(rule["verbs"]) == {"get", "update"} and rule["resourceNames"])
    assert {one["kind"] for one in found}.isdisjoint({"ClusterRole", "ClusterRoleBinding"})


@shapes
def test_no_secret_is_in_a_variable_a_config_map_or_a_shared_mount(name: str) -> None:
    found = shipped(name)
    assert not [one for one in found if one["kind"] == "Secret"], "a Secret in a chart is in every release record"
    for one in found:
        if one["kind"] == "ConfigMap":
            text = "\n".join(value for key, value in one["data"].items() if key.endswith(".yaml"))
            assert "PRIVATE KEY" not in text
            assert not {"password", "secret", "token_secret", "passphrase"} & _keys(YAML(typ="safe").load(text)), one
    keys: dict[str, set[str]] = {}
    for where, pod in _pods(found):
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            assert "envFrom" not in container, where
            for variable in container.get("env", []):
                assert "secretKeyRef" not in variable.get("valueFrom", {}), f"{where}: {variable['name']}"
                assert variable["name"].endswith("_FILE") or "PASSWORD" not in variable["name"], where
            for mount in container["volumeMounts"]:
                assert "subPath" not in mount, f"{where}: what is mounted so never changes"
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume and volume["secret"].get("items", [{}])[0].get("key") != "ca.crt":
                assert volume["secret"].get("defaultMode") == 0o440, where
                keys.setdefault(volume["secret"]["secretName"], set()).add(where)
    for secret, holders in keys.items():
        if "tls" in secret:
            assert len(holders) == 1, f"{secret} is mounted by {holders}: one identity, one holder"
    assert not any(secret.endswith(("-ca", "-root")) for secret in keys), "the key of a CA is mounted"


@shapes
def test_only_the_coordinators_init_container_sees_the_key_of_its_ca(name: str) -> None:
    for where, pod in _pods(shipped(name)):
        volumes = {
            volume["name"]: {item["key"] for item in volume["secret"].get("items", [])}
            for volume in pod["spec"]["volumes"]
            if volume.get("secret", {}).get("secretName", "").endswith("-join")
        }
        assert not volumes or _component(pod) == "coordinator", where
        for container in pod["spec"]["containers"]:
            for mount in container["volumeMounts"]:
                assert volumes.get(mount["name"], {"issuing.crt"}) <= {"issuing.crt", "pods.json"}, where
                assert volumes.get(mount["name"], {"issuing.crt"}), f"{where}: everything"
        memory = [volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "issuing-key"]
        assert [volume["medium"] for volume in memory] == (["Memory"] if volumes else []), where


@shapes
def test_a_pods_own_token_is_for_our_coordinator_and_seen_by_its_init_container_alone(name: str) -> None:
    for where, pod in _pods(shipped(name)):
        said = {
            volume["name"]: source["serviceAccountToken"]
            for volume in pod["spec"].get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
        }
        assert all(token["audience"].startswith("spiffe://") for token in said.values()), where
        for container in pod["spec"]["containers"]:
            assert not said.keys() & {mount["name"] for mount in container["volumeMounts"]}, where


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {str(key) for key in value} | {inner for one in value.values() for inner in _keys(one)}
    return {inner for one in value for inner in _keys(one)} if isinstance(value, list) else set()


@shapes
def test_plaintext_exists_only_where_it_was_asked_for(name: str) -> None:
    insecure = name == "plaintext"
    texts = [one["data"]["dagu.yaml"] for one in shipped(name) if "dagu.yaml" in one.get("data", {})]
    for settings in (YAML(typ="safe").load(text) for text in texts):
        if "peer" not in settings:
            assert name == "standalone"
        elif insecure:
            assert settings["peer"] == {"insecure": True}
        else:
            # Nothing said is the standard place, which only a pod that joins has filled.
            joins = name == "joining" and settings.get("worker", {}).get("labels") == {"gpu": "true"}
            files = {"cert_file", "key_file", "client_ca_file"}
            assert files & settings["peer"].keys() == (set() if joins else files)
            assert "insecure" not in settings["peer"]


@shapes
def test_whatever_selects_finds_its_pods(name: str) -> None:
    found = shipped(name)
    pods = [pod["metadata"]["labels"] for _, pod in _pods(found)]
    services = [one for one in found if one["kind"] == "Service"]
    for service in services:
        matched = [
            pod for pod in _pods(found) if service["spec"]["selector"].items() <= pod[1]["metadata"]["labels"].items()
        ]
        assert len(matched) == 1, service["metadata"]["name"]
        ports = {port["name"] for port in matched[0][1]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for one in found:
        match one["kind"]:
            case "NetworkPolicy":
                assert any(_selects(one["spec"]["podSelector"], labels) for labels in pods), one["metadata"]["name"]
            case "PodDisruptionBudget" | "PodMonitor":
                assert any(_selects(one["spec"]["selector"], labels) for labels in pods), one["metadata"]["name"]
            case "ServiceMonitor":
                labels = [service["metadata"]["labels"] for service in services]
                assert sum(_selects(one["spec"]["selector"], each) for each in labels) == 1
            case "HorizontalPodAutoscaler" | "ScaledObject":
                target = one["spec"]["scaleTargetRef"]["name"]
                scaled = next(
                    each for each in found if each["kind"] == "Deployment" and each["metadata"]["name"] == target
                )
                assert "replicas" not in scaled["spec"], "an upgrade would undo the scaling"
            case "StatefulSet":
                headless = next(each for each in services if each["metadata"]["name"] == one["spec"]["serviceName"])
                assert headless["spec"]["clusterIP"] == "None"


def _ports(found: list[Document], end: str, own: dict[str, str], other: dict[str, str]) -> set[int]:
    """Return the TCP ports that the rules of pods with labels `own` let through at this end, from or to `other`."""
    policies = [one["spec"] for one in found if one["kind"] == "NetworkPolicy"]
    mine = [one for one in policies if _selects(one["podSelector"], own) and end.title() in one["policyTypes"]]
    assert mine, f"nothing bounds the {end} of {own}"
    return {
        port["port"]
        for one in mine
        for rule in one.get(end, [])
        for peer in rule["from" if end == "ingress" else "to"]
        if "podSelector" in peer and "namespaceSelector" not in peer and _selects(peer["podSelector"], other)
        for port in rule["ports"]
    }


def _allowed(found: list[Document], source: dict[str, str], target: dict[str, str]) -> set[int]:
    """Return the TCP ports at which pods with labels `source` reach those with `target`: both ends must say so."""
    return _ports(found, "egress", source, target) & _ports(found, "ingress", target, source)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "standalone"])
def test_workers_reach_the_coordinators_port_and_nothing_else(name: str) -> None:
    found = shipped(name)
    labels = {_component(pod): pod["metadata"]["labels"] for _, pod in _pods(found)}
    assert _allowed(found, labels["worker"], labels["coordinator"]) == {50055}
    for target in labels.values():
        if target is not labels["coordinator"]:
            assert _allowed(found, labels["worker"], target) == set()
            assert _allowed(found, labels["coordinator"], target) == set()
    for key in {"app.kubernetes.io/name", "app.kubernetes.io/instance"} & labels["worker"].keys():
        stranger = {**labels["worker"], key: "another"}
        assert _ports(found, "ingress", labels["coordinator"], stranger) == set()


@shapes
def test_a_pod_is_given_longer_to_end_than_its_drain_takes(name: str) -> None:
    found = shipped(name)
    for where, pod in _pods(found):
        if _component(pod) not in ("coordinator", "worker"):
            continue
        mounted = next(volume["configMap"] for volume in pod["spec"]["volumes"] if volume["name"] == "config")
        settings = YAML(typ="safe").load(charts.one(found, "ConfigMap", mounted["name"])["data"]["dagu.yaml"])
        part = settings["worker" if _component(pod) == "worker" else "scheduler"]
        drain = int(part["drain_timeout"].removesuffix("s"))
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain + 60, where


@shapes
def test_probes_ask_what_is_true(name: str) -> None:
    """Liveness never depends on another pod; readiness says whether work can be taken."""
    for where, pod in _pods(shipped(name)):
        for container in pod["spec"]["containers"]:
            if _component(pod) not in ("coordinator", "worker"):
                continue
            ready, live = container["readinessProbe"], container["livenessProbe"]
            ports = {port["name"] for port in container["ports"]}
            if "tcpSocket" not in ready:
                assert ready["httpGet"]["path"].endswith("/ready"), where
                assert live["httpGet"]["path"].endswith("/health"), where
                assert {ready["httpGet"]["port"], live["httpGet"]["port"]} <= ports, where
            start = container["startupProbe"]
            assert start["periodSeconds"] * start["failureThreshold"] >= 120, f"{where}: killed while it starts"
