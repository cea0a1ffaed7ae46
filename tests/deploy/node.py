"""What a cluster does around our processes, as far as a test needs it: Secrets behind an API, and pods as processes.

No container engine and no cluster run here. A pod's process gets exactly the flags, variables and files that were
rendered; only paths lead into a folder, ports are free ones, and Service names are localhost.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import trustme

from tests.deploy.charts import Document, one, pod_of
from tests.deploy.cluster import ISSUER, Cluster
from tests.ports import free_port
from tests.system.hosts import PROGRAM, Host, Service

TOKEN = "a-service-accounts-token"
MODE = 0o440 if os.geteuid() == 0 else 0o600
"""Secrets are mounted as root's and readable by a group; without root this shows only as a private file."""


@dataclass
class SecretsApi:
    """The Secrets of one namespace, as the Kubernetes API serves them: 404, 409 and versions included."""

    secrets: dict[str, Document] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cluster: Cluster = field(default_factory=Cluster)

    def answer(self, method: str, path: str, body: Document | None) -> tuple[int, Document]:
        """Return status and body."""
        if path == "/.well-known/openid-configuration":
            return 200, {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/openid/v1/jwks"}
        if path == "/openid/v1/jwks":
            return 200, {"keys": self.cluster.keys}
        self.asked.append(f"{method} {path}")
        prefix, _, name = path.partition("/api/v1/namespaces/flows/secrets")
        name = name.lstrip("/") or (body["metadata"]["name"] if body else "")
        found = self.secrets.get(name)
        if prefix or (found is None and method != "POST"):
            return 404, {}
        if method == "GET":
            assert found is not None
            return 200, found
        assert body is not None
        if (found is not None) is (method == "POST"):
            return 409, {}
        version = found["metadata"]["resourceVersion"] if found else "0"
        if found and body["metadata"].get("resourceVersion", version) != version:
            return 409, {}
        made = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(version) + 1)}}
        self.secrets[name] = made
        return 200, made

    @contextmanager
    def served(self, folder: Path) -> Iterator[dict[str, str]]:
        """Serve it; yield the variables by which a pod finds it, as its service account."""
        api = self
        ca = trustme.CA()
        (folder / "namespace").write_text("flows")
        (folder / "token").write_text(TOKEN)
        ca.cert_pem.write_to_path(str(folder / "ca.crt"))

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                known = self.headers["Authorization"] == f"Bearer {TOKEN}"
                status, said = api.answer(self.command, self.path, body) if known else (401, {})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield {
                "KUBERNETES_SERVICE_HOST": "localhost",
                "KUBERNETES_SERVICE_PORT": str(server.server_port),
                "SERVICE_ACCOUNT_DIR": str(folder),
            }
            server.shutdown()
            thread.join()


@dataclass
class Node:
    """One release: its documents, the Secrets of its namespace, and free ports for those of its containers."""

    root: Path
    documents: list[Document]
    secrets: dict[str, Document]
    cluster: Cluster = field(default_factory=Cluster)
    ports: dict[str, int] = field(
        default_factory=lambda: {name: free_port() for name in ("8080", "50055", "8091", "8092")}
    )

    def pod(self, kind: str, name: str, called: str = "pod-1") -> Pod:
        """Mount what a pod mounts."""
        found = pod_of(one(self.documents, kind, name))
        assert found is not None
        made = Pod(self, found["spec"], self.root / f"{kind}-{name}", called)
        made.mount()
        return made

    def localised(self, text: str) -> str:
        """Replace Service names by localhost and container ports by ours."""
        text = re.sub(r"[\w-]+\.[\w-]+\.svc\.cluster\.local|\bdagu\.example\.com", "localhost", text)
        return re.sub(r"\b(8080|50055|8091|8092)\b", lambda found: str(self.ports[found[1]]), text)


@dataclass
class Pod:
    """The processes of one pod."""

    node: Node
    spec: Document
    root: Path
    called: str = "pod-1"

    def mount(self) -> None:
        """Write the files of its volumes."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        containers = [*self.spec["containers"], *self.spec.get("initContainers", [])]
        for mount in (mount for container in containers for mount in container["volumeMounts"]):
            folder = self.at(mount["mountPath"])
            folder.mkdir(parents=True, exist_ok=True)
            volume = volumes[mount["name"]]
            if "configMap" in volume:
                found = one(self.node.documents, "ConfigMap", volume["configMap"]["name"])["data"]
                files = {key: self.within(value) if key == "dagu.yaml" else value for key, value in found.items()}
                self._write(folder, {key: text.encode() for key, text in files.items()}, 0o644)
            if "secret" in volume:
                data = self.node.secrets[volume["secret"]["secretName"]]["data"]
                items = volume["secret"].get("items", [{"key": key, "path": key} for key in data])
                self._write(folder, {item["path"]: base64.b64decode(data[item["key"]]) for item in items}, MODE)

            for source in volume.get("projected", {}).get("sources", []):
                token = source["serviceAccountToken"]
                assert 600 <= token["expirationSeconds"] <= 3600, "the kubelet makes none for less"
                said = self.token(audience=token["audience"])
                self._write(folder, {token["path"]: said.encode()}, MODE)

    def token(self, **more: Any) -> str:
        """Return what the cluster says of this pod; `more` as `Cluster.token`."""
        about = {"pod": self.called, "account": self.spec["serviceAccountName"]}
        return self.node.cluster.token(**{**about, **more})

    def _write(self, folder: Path, files: dict[str, bytes], mode: int) -> None:
        for name, data in files.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(data)
                (folder / name).chmod(mode)

    def at(self, path: str) -> Path:
        """Return where a path of the container is."""
        return self.root / path.lstrip("/")

    def within(self, text: str) -> str:
        """Return a text of the container as it is true here."""
        text = text.replace("/opt/secure-dagu/bin/python", sys.executable)
        return self.node.localised(
            re.sub(r"(/etc/dagu|/var/lib/dagu)(?=/|$|['\" \n])", lambda m: f"{self.root}{m[0]}", text)
        )

    def environment(self, container: Document) -> dict[str, str]:
        """Return the variables of a container, references resolved."""
        made: dict[str, str] = {}
        for item in container.get("env", []):
            value = item.get("value", self.called)
            made[item["name"]] = self.within(re.sub(r"\$\((\w+)\)", lambda m: made[m[1]], value))
        return made

    def run(self, container: Document, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a container that ends by itself."""
        # Without a command, arguments go to the image's, which is ours.
        words = [self.within(word) for word in container.get("command", [str(PROGRAM), *container.get("args", [])])]
        env = {"PATH": os.environ["PATH"], "TMPDIR": str(self.root), **self.environment(container), **more}
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as `kubectl exec` runs it: beside the first container's process, with its variables."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the image's has ours first
        env = {"TMPDIR": str(self.root), **self.environment(self.spec["containers"][0]), "PATH": path}
        inside = [self.within(word) for word in words]
        return subprocess.run(inside, env=env, capture_output=True, text=True, timeout=60, check=False)

    @contextmanager
    def service(self, *, is_restart: bool = False, **more: str) -> Iterator[Service]:
        """Run its init containers, then its container, with `more` variables, until its readiness probe is content.

        `is_restart`: as when only the container ended; then init containers do not run again.
        """
        for init in [] if is_restart else self.spec.get("initContainers", []):
            done = self.run(init)
            assert done.returncode == 0, done.stderr
        container = self.spec["containers"][0]
        own = self.environment(container)

        class Contained(Host):
            @property
            def environment(self) -> dict[str, str]:
                return {**super().environment, **own, "DAGU_SCHEDULER_PORT": "0", **more}

        with Contained(self.at("/var/lib/dagu")).service(*(self.within(word) for word in container["args"])) as running:
            # As the kubelet: nothing else is asked until the start was seen.
            self.await_probe(container, "startupProbe", running)
            self.await_probe(container, "readinessProbe", running)
            assert self.asked(container, "livenessProbe") == 200
            yield running

    def asked(self, container: Document, probe: str) -> int:
        """Return what a probe is answered, asked as the kubelet does: no certificate, none verified; 0 is no answer."""
        get = container[probe]["httpGet"]
        port = next(item["containerPort"] for item in container["ports"] if item["name"] == get["port"])
        url = f"{get.get('scheme', 'HTTP').lower()}://127.0.0.1:{self.node.ports[str(port)]}{get['path']}"
        try:
            return httpx.get(url, verify=False, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def await_probe(self, container: Document, probe: str, running: Service, *, timeout_s: float = 60.0) -> None:
        """Wait until a probe is content."""
        ended = threading.Event()
        for _ in range(int(timeout_s / 0.1)):
            if self.asked(container, probe) == 200:
                return
            if running.process.poll() is not None:
                running.wait()  # whoever reads its lines may be behind
                raise AssertionError(running.text)
            ended.wait(0.1)
        raise AssertionError(f"{probe} was never content:\n{running.text}")


def secret(**files: bytes) -> dict[str, Any]:
    """Return a Secret with these files; `_` stands for a dot."""
    return {"data": {name.replace("_", "."): base64.b64encode(data).decode() for name, data in files.items()}}
