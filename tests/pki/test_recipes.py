"""The recipes for other CAs give certificates that our peers take, in the layout in which those CAs deliver them."""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from ruamel.yaml import YAML

from secure_dagu.link.context import client_policy, server_policy
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.lint import Level, lint_file
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.verifying import verify
from tests import needs
from tests.pki.forging import NOW

RECIPES = Path(__file__).resolve().parents[2] / "pki" / "recipes"
EC = {256: ec.SECP256R1, 384: ec.SECP384R1}


class OtherCa:
    """A CA that does as it is told, as the products of the recipes do."""

    def __init__(self, *, uris: list[str], dns: list[str], trust_domain: str = "secure-dagu") -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])
        permitted = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        self.certificate = (
            self._builder(name, name, self.key, timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.NameConstraints(permitted, None), critical=True)
            .sign(self.key, hashes.SHA384())
        )

    def issue(
        self,
        secret: Path,
        *,
        uris: list[str],
        dns: list[str],
        ips: list[str],
        usages: list[str],
        common_name: str = "",
        bits: int = 256,
        lifetime: timedelta = timedelta(days=30),
        extensions: list[x509.ExtensionType] | None = None,
    ) -> None:
        """Issue into a folder laid out as a mounted Kubernetes secret: its files are links into one that is swapped."""
        key = ec.generate_private_key(EC[bits]())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        names: list[x509.GeneralName] = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        purposes = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
        builder = (
            self._builder(name, self.certificate.subject, key, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
            .add_extension(x509.ExtendedKeyUsage([purposes[word] for word in usages]), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
                    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
                ),
                critical=True,
            )
        )  # fmt: skip
        for extension in extensions or ():
            builder = builder.add_extension(extension, critical=False)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        data = secret / "..2026_11_25_20_00_00.1"
        data.mkdir(parents=True)
        (secret / "..data").symlink_to(data.name)
        for file, text in {
            "tls.crt": builder.sign(self.key, hashes.SHA384()).public_bytes(pem),
            "tls.key": private,
            "ca.crt": self.certificate.public_bytes(pem),
        }.items():
            (data / file).touch(mode=0o400)
            (data / file).chmod(0o600)
            (data / file).write_bytes(text)
            (secret / file).symlink_to(f"..data/{file}")

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(minutes=1))
            .not_valid_after(NOW + lifetime)
        )


def check(worker: Path, coordinator: Path, *, host: str, labels: tuple[str, ...] = ()) -> None:
    """Both ends start with these files, and each takes the other's."""
    profiles = load_profiles()
    for secret in (worker, coordinator):
        found = lint_file(secret / "tls.crt", profiles, utc_now())
        assert [one.what for one in found if one.level is Level.ERROR] == []
    client = client_policy(cert=worker / "tls.crt", key=worker / "tls.key", ca=worker / "ca.crt")
    server = server_policy(
        cert=coordinator / "tls.crt", key=coordinator / "tls.key", client_ca=coordinator / "ca.crt", advertised=[host]
    )
    assert (str(client.identity), str(server.identity)) == ("worker/gpu-1", "coordinator/coordinator")
    said = verify(worker / "tls.crt", coordinator / "ca.crt", at=utc_now(), purpose="client")
    assert (said.accepted, said.labels) == (True, labels)
    assert verify(coordinator / "tls.crt", worker / "ca.crt", at=utc_now(), host=host).accepted


def test_the_openssl_recipe_runs_and_its_certificates_have_no_finding(tmp_path: Path) -> None:
    needs.program("openssl", package="openssl")
    made = tmp_path / "made"
    subprocess.run(["sh", RECIPES / "openssl/make.sh", made], check=True, capture_output=True, timeout=60)
    profiles = load_profiles()
    for name in ("ca.crt", "coordinator.crt", "gpu-1.crt"):
        assert lint_file(made / name, profiles, utc_now()) == []
    for name, secret in (("gpu-1", "worker"), ("coordinator", "server")):
        (tmp_path / secret).mkdir()
        for end in ("crt", "key"):
            (made / f"{name}.{end}").rename(tmp_path / secret / f"tls.{end}")
        (tmp_path / secret / "ca.crt").write_bytes((made / "ca.crt").read_bytes())
    check(tmp_path / "worker", tmp_path / "server", host="ci.example.com", labels=("gpu=true", "zone=eu"))


def hours(text: str) -> timedelta:
    assert text.endswith("h")
    return timedelta(hours=int(text[:-1]))


def test_the_cert_manager_recipe_describes_certificates_that_we_take(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = list(YAML(typ="safe").load_all(RECIPES / "cert-manager/certificates.yaml"))
    wanted = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "Certificate"}
    permitted = wanted["secure-dagu-ca"]["nameConstraints"]["permitted"]
    ca = OtherCa(uris=permitted["uriDomains"], dns=permitted["dnsDomains"])
    for name in ("worker-gpu-1", "coordinator"):
        spec = wanted[name]
        assert spec["issuerRef"] == {"name": "secure-dagu", "kind": "ClusterIssuer"}
        assert hours(spec["duration"]) / 2 >= hours(spec["renewBefore"])
        ca.issue(
            tmp_path / name, uris=spec["uris"], dns=spec.get("dnsNames", []), ips=spec.get("ipAddresses", []),
            usages=[usage.removesuffix(" auth") for usage in spec["usages"] if usage.endswith(" auth")],
            bits=spec["privateKey"]["size"], lifetime=hours(spec["duration"]),
        )  # fmt: skip
    check(tmp_path / "worker-gpu-1", tmp_path / "coordinator", host="dagu-coordinator.dagu.svc")


def rendered(template: str, **user: str) -> Any:
    """Do what step-ca does with the three forms that our templates use."""

    def text_of(found: re.Match[str]) -> str:
        return found["format"].replace("%s", user[found["key"]])

    def asn1(found: re.Match[str]) -> str:
        text = text_of(found).removeprefix("utf8:").encode()
        return json.dumps(base64.b64encode(b"\x0c" + bytes([len(text)]) + text).decode())

    printf = r'\(printf "(?P<format>[^"]*)" \.Insecure\.User\.(?P<key>\w+)\)'
    template = re.sub(r"\{\{ toJson " + printf + r" \}\}", lambda found: json.dumps(text_of(found)), template)
    template = re.sub(r"\{\{ asn1Enc " + printf + r" \| toJson \}\}", asn1, template)
    return json.loads(template)


def test_the_step_ca_templates_describe_certificates_that_we_take(tmp_path: Path) -> None:
    ca = OtherCa(uris=["secure-dagu"], dns=["example.com", "localhost"])
    for name in ("worker", "coordinator"):
        wanted = rendered((RECIPES / f"step-ca/{name}.tpl").read_text(), name="gpu-1", labels="gpu=true\nzone=eu")
        assert wanted["basicConstraints"] == {"isCA": False}
        names = {kind: [san["value"] for san in wanted["sans"] if san["type"] == kind] for kind in ("uri", "dns", "ip")}
        more: list[x509.ExtensionType] = [
            x509.UnrecognizedExtension(x509.ObjectIdentifier(one["id"]), base64.b64decode(one["value"]))
            for one in wanted.get("extensions", ())
        ]
        ca.issue(
            tmp_path / name, uris=names["uri"], dns=names["dns"], ips=names["ip"], extensions=more,
            usages=[usage.removesuffix("Auth") for usage in wanted["extKeyUsage"]],
            common_name=wanted["subject"]["commonName"],
        )  # fmt: skip
    check(tmp_path / "worker", tmp_path / "coordinator", host="ci.example.com", labels=("gpu=true", "zone=eu"))


def test_the_vault_roles_describe_certificates_that_we_take(tmp_path: Path) -> None:
    ca = OtherCa(uris=["secure-dagu"], dns=["example.com", "localhost"])
    asked = {
        "worker": {"uris": ["spiffe://secure-dagu/worker/gpu-1"], "dns": [], "ips": []},
        "coordinator": {
            "uris": ["spiffe://secure-dagu/coordinator/coordinator"], "dns": ["ci.example.com", "localhost"],
            "ips": ["127.0.0.1"],
        },
    }  # fmt: skip
    for name, names in asked.items():
        role = json.loads((RECIPES / f"vault/{name}-role.json").read_text())
        (pattern,) = role["allowed_uri_sans"]
        assert all(fnmatch.fnmatch(uri, pattern) for uri in names["uris"])
        assert set(names["dns"]) <= {*role["allowed_domains"], *(["localhost"] if role.get("allow_localhost") else [])}
        assert not names["ips"] or role["allow_ip_sans"]
        assert role["key_type"] == "ec"
        ca.issue(
            tmp_path / name, uris=names["uris"], dns=names["dns"], ips=names["ips"], bits=role["key_bits"],
            lifetime=hours(role["ttl"]),
            usages=[word for word in ("client", "server") if role[f"{word}_flag"]],
        )  # fmt: skip
    check(tmp_path / "worker", tmp_path / "coordinator", host="ci.example.com")


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_mounted_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    from secure_dagu.errors import ConfigError

    ca = OtherCa(uris=["secure-dagu"], dns=["localhost"])
    ca.issue(tmp_path / "s", uris=["spiffe://secure-dagu/worker/gpu-1"], dns=[], ips=[], usages=["client"])
    (tmp_path / "s/tls.key").resolve().chmod(mode)
    with pytest.raises(ConfigError, match="cannot be used"):
        client_policy(cert=tmp_path / "s/tls.crt", key=tmp_path / "s/tls.key", ca=tmp_path / "s/ca.crt")
