"""What somebody does with a release: runs the Job of its certificates, asks the coordinator, ends its services."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from ruamel.yaml import YAML

from tests.deploy.charts import Document, one
from tests.deploy.node import Node, Pod, SecretsApi
from tests.system.hosts import Host, Service

FULL = "dagu-secure-dagu"
SETUP = (
    f"kubectl -n flows exec {FULL}-coordinator-0 -- /opt/secure-dagu/bin/python -c "
    "\"print(open('/var/lib/dagu/data/auth/setup_token').read())\""
)
TOKEN = (
    f"kubectl -n flows exec statefulset/{FULL}-coordinator -- secure-dagu pki token --worker gpu-1 --labels gpu=true"
)
"""These two the notes say, and `test_chart` holds them to it."""
HELLO = "steps:\n  - id: hello\n    run: echo hello\n"


@dataclass
class PkiJob:
    """The Job of the chart that makes certificates, and the API that it talks to."""

    pod: Pod
    folder: Path
    api: SecretsApi = field(default_factory=SecretsApi)
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, documents: list[Document]) -> PkiJob:
        """Return the one in these documents."""
        return cls(Node(folder, documents, {}).pod("Job", f"{FULL}-pki-init"), folder)

    @contextmanager
    def served(self) -> Iterator[PkiJob]:
        """Serve the API meanwhile."""
        account = self.folder / "account"
        account.mkdir()
        with self.api.served(account) as self.variables:
            yield self

    def run(self, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self.pod.run(self.pod.spec["containers"][0], **self.variables, **more)

    @property
    def versions(self) -> dict[str, str]:
        """Return the version of each Secret."""
        return {name: made["metadata"]["resourceVersion"] for name, made in self.api.secrets.items()}


def executed(pod: Pod, line: str) -> str:
    """Run what a line `kubectl … exec TARGET -- COMMAND` runs in the coordinator's pod; return what it prints."""
    words = shlex.split(line)
    assert words[0] == "kubectl"
    target = words[words.index("exec") + 1].removeprefix("statefulset/").removesuffix("-0")
    assert one(pod.node.documents, "StatefulSet", target)
    done = pod.exec(*words[words.index("--") + 1 :])
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_admin(node: Node, token: str) -> int:
    """Make the first admin of the Web UI with a setup token; return the status."""
    said = {"username": "ada", "password": "correct horse battery", "setupToken": token}
    url = f"https://localhost:{node.ports['8080']}/api/v1/auth/setup"
    return httpx.post(url, json=said, verify=False, timeout=10).status_code


def operator(node: Node, folder: Path, *words: str) -> str:
    files = folder / "operator"
    files.mkdir(exist_ok=True)
    host = Host(files)
    pod = {"volumes": [{"name": "tls", "secret": {"secretName": f"{FULL}-operator-tls"}}],
           "containers": [{"volumeMounts": [{"name": "tls", "mountPath": "/tls"}]}]}  # fmt: skip
    mounted = Pod(node, pod, files)
    mounted.mount()
    tls = mounted.at("/tls")
    rules = node.root / "StatefulSet-dagu-secure-dagu-coordinator/etc/dagu/config/dagu.yaml"
    return host.ok(
        *words, f"--coordinators=localhost:{node.ports['50055']}", f"--config={_rules_of(rules, files)}",
        f"--peer.cert-file={tls}/tls.crt", f"--peer.key-file={tls}/tls.key", f"--peer.client-ca-file={tls}/ca.crt",
    )  # fmt: skip


def _rules_of(settings: Path, folder: Path) -> Path:
    """Take over the identity rules of the coordinator, which an operator needs too, and nothing else."""
    yaml = YAML(typ="safe")
    found = yaml.load(settings.read_text())["peer"].get("identity_rules", [])
    file = folder / "config.yaml"
    with file.open("w") as out:
        yaml.dump({"peer": {"identity_rules": found}} if found else {}, out)
    return file


def dispatched(node: Node, folder: Path, text: str = HELLO, *words: str) -> str:
    file = folder / "hello.yaml"
    file.write_text(text)
    return operator(node, folder, "dispatch", str(file), "--follow", *words)


def workers(node: Node, folder: Path) -> str:
    return operator(node, folder, "workers", "--json")


def stopped(*services: Service) -> None:
    for running in services:
        assert running.stop() == 0, running.text
