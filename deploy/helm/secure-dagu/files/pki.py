"""Make and renew the certificates of one installation: CA and leaves are Secrets of its namespace.

Run by the Jobs of the chart with what is wanted in a JSON file, whose path is the one argument:

    {"ca": SECRET, "trust_domain": NAME, "metadata_labels": {K: V},
     "certificates": [{"secret": SECRET, "role": ROLE, "name": NAME, "advertise": [NAME], "labels": {K: V}}]}

What is there and fits is left alone, so it may run at any time. The home of the CA is packed into Secret `ca`, which
nothing else mounts; two runs at once cannot both change it (`resourceVersion`): the later one fails and is tried again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount"))
REQUEST = "dagu.sh/certificate-request"
"""Annotation with the hash of what was asked for; another one is issued when it changes."""
Secret = dict[str, Any]


class Api:
    """The Secrets of our namespace."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        namespace = (ACCOUNT / "namespace").read_text().strip()
        bracketed = f"[{host}]" if ":" in host else host
        self._url = f"https://{bracketed}:{port}/api/v1/namespaces/{namespace}/secrets"
        self._trust = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")

    def get(self, name: str) -> Secret | None:
        """Return one, or None."""
        try:
            return self._ask("GET", f"/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def put(self, secret: Secret, *, exists: bool) -> Secret:
        """Write one; fails if somebody else was faster."""
        return self._ask("PUT", f"/{secret['metadata']['name']}", secret) if exists else self._ask("POST", "", secret)

    def _ask(self, method: str, path: str, body: Secret | None = None) -> Secret:
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, context=self._trust, timeout=30) as answer:
            found: Secret = json.load(answer)
        return found


def main(wanted: dict[str, Any]) -> None:
    """Bring the Secrets to what is wanted."""
    api = Api()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        kept = api.get(wanted["ca"])
        if kept is not None:
            _unpack(kept, home)
        else:
            coordinator = next(one for one in wanted["certificates"] if one["role"] == "coordinator")
            names = ",".join(coordinator["advertise"])
            _program(home, "pki", "init", "--advertise", names, "--trust-domain", wanted["trust_domain"])
            kept = api.put(_secret(wanted, wanted["ca"], _pack(home)), exists=False)
            print(f"made the CA of {wanted['trust_domain']} in Secret {wanted['ca']}")
        trusted = (home / "pki/ca.crt").read_bytes()
        made: list[tuple[Secret | None, Secret]] = []
        for one in wanted["certificates"]:
            before = api.get(one["secret"])
            if before is not None and _fits(before, one, trusted):
                continue
            made.append((before, _secret(wanted, one["secret"], _issue(home, Path(folder) / one["secret"], one), one)))
        if not made:
            print("nothing to do")
            return
        # First what the CA knows of them: a certificate that its ledger lacks could not be revoked.
        api.put({**_secret(wanted, wanted["ca"], _pack(home)), **_version(wanted, wanted["ca"], kept)}, exists=True)
        for before, secret in made:
            if before is not None:
                secret["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            api.put(secret, exists=before is not None)
            print(f"issued Secret {secret['metadata']['name']}")


def _version(wanted: dict[str, Any], name: str, kept: Secret) -> Secret:
    metadata = _secret(wanted, name, {})["metadata"]
    return {"metadata": {**metadata, "resourceVersion": kept["metadata"]["resourceVersion"]}}


def _issue(home: Path, out: Path, one: dict[str, Any]) -> dict[str, bytes]:
    words = ["pki", "issue", one["role"], one["name"], "--out", str(out)]
    if one["advertise"]:
        words += ["--advertise", ",".join(one["advertise"])]
    if one["labels"]:
        words += ["--labels", ",".join(f"{key}={value}" for key, value in sorted(one["labels"].items()))]
    _program(home, *words)
    return {
        "tls.crt": (out / f"{one['name']}.crt").read_bytes(),
        "tls.key": (out / f"{one['name']}.key").read_bytes(),
        "ca.crt": (out / "ca.crt").read_bytes(),
    }


def _fits(secret: Secret, one: dict[str, Any], trusted: bytes) -> bool:
    """Tell whether it is what is wanted, from this CA, and in the first half of its life."""
    data = {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
    if secret["metadata"].get("annotations", {}).get(REQUEST) != _digest(one) or data.get("ca.crt") != trusted:
        return False
    try:
        leaf = x509.load_pem_x509_certificate(data["tls.crt"])
    except (KeyError, ValueError):
        return False
    middle = leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2
    return datetime.now(UTC) < middle


def _digest(one: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:32]


def _secret(wanted: dict[str, Any], name: str, data: dict[str, bytes], one: dict[str, Any] | None = None) -> Secret:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque" if one is None else "kubernetes.io/tls",
        "metadata": {
            "name": name,
            "labels": wanted["metadata_labels"],
            "annotations": {} if one is None else {REQUEST: _digest(one)},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _pack(home: Path) -> dict[str, bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(home, arcname=".")
    return {"home.tar.gz": packed.getvalue(), "ca.crt": (home / "pki/ca.crt").read_bytes()}


def _unpack(secret: Secret, home: Path) -> None:
    packed = io.BytesIO(base64.b64decode(secret["data"]["home.tar.gz"]))
    with tarfile.open(fileobj=packed) as archive:
        archive.extractall(home, filter="data")


def _program(home: Path, *words: str) -> None:
    program = Path(sys.executable).with_name("secure-dagu")
    subprocess.run([program, "--dagu-home", home, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
