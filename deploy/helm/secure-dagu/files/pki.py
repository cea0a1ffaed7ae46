"""Make and renew the certificates of one installation: CAs and leaves are Secrets of its namespace.

Run by the Jobs of the chart with what is wanted in a JSON file, whose path is the one argument:

    {"root": SECRET, "ca": SECRET, "join": SECRET | "", "trust_domain": NAME, "metadata_labels": {K: V},
     "certificates": [{"secret": SECRET, "role": ROLE, "name": NAME, "advertise": [NAME], "labels": {K: V}}],
     "pods": {"audience": NAME, "pools": [{"namespace": NAME, "service_account": NAME, "labels": ["K=V"]}]}}

    root    what every peer trusts; it signs the two CAs below it and nothing else, and nothing mounts it
    ca      the issuing CA that signs `certificates` here; nothing mounts it
    join    the issuing CA with which the coordinator lets machines join, which alone mounts it; empty: none
    pods    which pods may join by themselves; into `join`, with the public keys by which this cluster speaks for them

What is there and fits is left alone, so it may run at any time. Homes are packed into `root` and `ca`; two runs at once
cannot both change one (`resourceVersion`): the later one fails and is tried again. Once `root` was taken away, to be
kept elsewhere, everything goes on without it until an issuing CA is to be signed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import secrets
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount"))
REQUEST = "dagu.sh/certificate-request"
"""Annotation with the hash of what was asked for; another one is issued when it changes."""
PASSPHRASE = "passphrase"
"""File in the root's home: it opens the key beside it, here and wherever both are taken."""
LAST_CALL = timedelta(days=100)
"""Before the end of an issuing CA whose root is not there the Job fails, to be seen: no certificate lives longer."""
Secret = dict[str, Any]


class Api:
    """The Secrets of our namespace."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        namespace = (ACCOUNT / "namespace").read_text().strip()
        bracketed = f"[{host}]" if ":" in host else host
        self._server, self._secrets = f"https://{bracketed}:{port}", f"/api/v1/namespaces/{namespace}/secrets"
        self._trust = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")

    def get(self, name: str) -> Secret | None:
        """Return one, or None."""
        try:
            return self._ask("GET", f"{self._secrets}/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def put(self, secret: Secret, *, exists: bool) -> Secret:
        """Write one; fails if somebody else was faster."""
        if exists:
            return self._ask("PUT", f"{self._secrets}/{secret['metadata']['name']}", secret)
        return self._ask("POST", self._secrets, secret)

    def voice(self) -> dict[str, Any]:
        """Return by what the cluster's word about its pods is known: its name as an issuer, and its public keys."""
        issuer = self._ask("GET", "/.well-known/openid-configuration")["issuer"]
        return {"issuer": issuer, "keys": self._ask("GET", "/openid/v1/jwks")["keys"]}

    def _ask(self, method: str, path: str, body: Secret | None = None) -> Secret:
        request = urllib.request.Request(
            self._server + path,
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


@dataclass
class Kept:
    """A home that lies packed in a Secret."""

    api: Api
    wanted: dict[str, Any]
    name: str
    home: Path
    version: str = ""

    def load(self) -> bool:
        """Unpack it; tell whether there is one."""
        if not self.version and (found := self.api.get(self.name)) is not None:
            _unpack(found, self.home)
            self.version = found["metadata"]["resourceVersion"]
        return bool(self.version)

    def save(self) -> None:
        """Pack it; fails if somebody else was faster."""
        secret = _secret(self.wanted, self.name, _pack(self.home))
        if self.version:
            secret["metadata"]["resourceVersion"] = self.version
        self.version = self.api.put(secret, exists=bool(self.version))["metadata"]["resourceVersion"]


def main(wanted: dict[str, Any]) -> None:
    """Bring the Secrets to what is wanted."""
    api = Api()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        root, ca = (Kept(api, wanted, wanted[name], place / name) for name in ("root", "ca"))
        is_changed = _bring_ca(root, ca)
        trusted = (ca.home / "pki/ca.crt").read_bytes()
        if wanted["join"]:
            is_changed |= _bring_join(root, ca, wanted["join"], place / "join")
        made: list[tuple[Secret | None, Secret]] = []
        for one in wanted["certificates"]:
            before = api.get(one["secret"])
            if before is not None and _fits(before, one, trusted):
                continue
            made.append((before, _secret(wanted, one["secret"], _issue(ca.home, place / one["secret"], one), one)))
        if made:
            # First what the CA knows of them: a certificate that its ledger lacks could not be revoked.
            ca.save()
        elif not is_changed:
            print("nothing to do")
        for before, secret in made:
            _put(api, secret, before)
            print(f"issued Secret {secret['metadata']['name']}")


def _bring_ca(root: Kept, ca: Kept) -> bool:
    """Make root and issuing CA where there is none, renew the issuing CA in the middle of its life; tell if it did."""
    certificate, request = ca.home / "pki/issuing.crt", ca.home / "pki/issuing.csr"
    if ca.load():
        if not certificate.exists():  # a CA without a root, of before there were roots
            return False
        found = certificate.read_bytes()
        if not _is_due(found) or not _may_sign(root, found):
            return False
        certificate.write_bytes((_sign(root, request) / "issuing.crt").read_bytes())
        ca.save()
        print(f"renewed the issuing CA in Secret {ca.name}")
        return True
    coordinator = next(one for one in ca.wanted["certificates"] if one["role"] == "coordinator")
    advertise = ("--advertise", ",".join(coordinator["advertise"]))
    if not root.load():
        domain = ca.wanted["trust_domain"]
        root.home.mkdir(mode=0o700)
        given = root.home / PASSPHRASE
        given.touch(mode=0o600)
        given.write_text(secrets.token_urlsafe(32))
        _program(
            root.home, "pki", "init", "--offline-root", *advertise, "--trust-domain", domain, "--passphrase-file", given
        )
        root.save()
        print(f"made the root of {domain} in Secret {root.name}")
    ca.home.mkdir(mode=0o700)
    _program(ca.home, "pki", "init", "--issuing-ca")
    _program(ca.home, "pki", "init", "--issuing-ca", "--certificate", _sign(root, request), *advertise)
    ca.save()
    print(f"made the issuing CA in Secret {ca.name}")
    return True


def _bring_join(root: Kept, ca: Kept, name: str, home: Path) -> bool:
    """Make or renew the issuing CA of the coordinator, and say which pods may join; tell if anything is new.

    The key stays the same when the CA is renewed.
    """
    api, wanted = root.api, root.wanted
    before = api.get(name)
    there = {} if before is None else _data(before)
    found = dict(there)
    if there.get("ca.crt") != (ca.home / "pki/ca.crt").read_bytes():
        if not (ca.home / "pki/issuing.crt").exists():
            raise SystemExit(
                f"peer.tls.helper.join wants a root, and the CA in Secret {ca.name} was made without one.\n"
                f"Delete that Secret to have a root and all certificates made anew, or leave join off."
            )
        if not root.load():
            raise SystemExit(f"peer.tls.helper.join wants an issuing CA: put Secret {root.name} back, which signs it.")
        home.mkdir(mode=0o700)
        _program(home, "pki", "init", "--issuing-ca")
        found = {file: (home / "pki" / file).read_bytes() for file in ("issuing.key", "issuing.csr")}
    if "issuing.crt" not in found or (_is_due(found["issuing.crt"]) and _may_sign(root, found["issuing.crt"])):
        request = home / "pki/issuing.csr"
        request.parent.mkdir(parents=True, exist_ok=True)
        request.write_bytes(found["issuing.csr"])
        signed = _sign(root, request)
        found |= {file: (signed / file).read_bytes() for file in ("issuing.crt", "ca.crt")}
        print(f"signed the issuing CA in Secret {name}")
    found["pods.json"] = b""
    if wanted["pods"]["pools"]:
        found["pods.json"] = json.dumps(api.voice() | wanted["pods"], sort_keys=True).encode()
    if found == there:
        return False
    _put(api, _secret(wanted, name, found), before)
    print(f"wrote Secret {name}")
    return True


def _sign(root: Kept, request: Path) -> Path:
    """Have the root sign an issuing CA, and remember it; return the folder with what it wrote."""
    if not root.load():
        raise SystemExit(f"an issuing CA is to be signed: put Secret {root.name} back, which signs it.")
    out = request.parent / "signed"
    _program(
        root.home, "pki", "issue-ca", request, "--out", out, "--force", "--passphrase-file", root.home / PASSPHRASE
    )
    root.save()
    return out


def _may_sign(root: Kept, certificate: bytes) -> bool:
    """Tell whether the root is there to renew an issuing CA; fails when it is not and time runs out."""
    if root.load():
        return True
    end, now = _life(certificate)[1], datetime.now(UTC)
    print(f"an issuing CA ends on {end:%Y-%m-%d}: put Secret {root.name} back, which renews it")
    if end - now < LAST_CALL:
        raise SystemExit(1)
    return False


def _put(api: Api, secret: Secret, before: Secret | None) -> None:
    """Write one in the place of what was read before."""
    if before is not None:
        secret["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
    api.put(secret, exists=before is not None)


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
    data = _data(secret)
    if secret["metadata"].get("annotations", {}).get(REQUEST) != _digest(one) or data.get("ca.crt") != trusted:
        return False
    try:
        return not _is_due(data["tls.crt"])
    except (KeyError, ValueError):
        return False


def _is_due(certificate: bytes) -> bool:
    """Tell whether half of its life is over."""
    start, end = _life(certificate)
    return datetime.now(UTC) >= start + (end - start) / 2


def _life(certificate: bytes) -> tuple[datetime, datetime]:
    found = x509.load_pem_x509_certificate(certificate)
    return found.not_valid_before_utc, found.not_valid_after_utc


def _data(secret: Secret) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}


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
    packed = io.BytesIO(_data(secret)["home.tar.gz"])
    with tarfile.open(fileobj=packed) as archive:
        archive.extractall(home, filter="data")


def _program(home: Path, *words: str | Path) -> None:
    program = Path(sys.executable).with_name("secure-dagu")
    subprocess.run([program, "--dagu-home", home, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
