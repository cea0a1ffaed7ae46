"""Prove from inside the cluster that the coordinator speaks to nobody without a certificate.

Arguments: coordinator (HOST:PORT), its CA, Web UI (HOST:PORT), its CA.
"""

from __future__ import annotations

import socket
import ssl
import sys
import tempfile
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = 4
PORT = 50055


def address(target: str) -> tuple[str, int]:
    """Return host and port of `HOST[:PORT]`."""
    host, colon, port = target.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (target, PORT)


def answered(stream: socket.socket) -> bool:
    """Tell whether the other end spoke HTTP/2 to us."""
    try:
        stream.sendall(HTTP2)
        head = stream.recv(9)
    except OSError:  # a TLS alert, or the end of the connection
        return False
    return len(head) == 9 and head[3] == SETTINGS


def foreign(folder: Path) -> tuple[Path, Path]:
    """Make a certificate that no CA of ours signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, private = folder / "stranger.crt", folder / "stranger.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return cert, private


def main(target: str, ca: str, ui: str, ui_ca: str) -> None:
    """Try to get in without, and with the wrong, certificate; the other end must prove itself meanwhile."""
    host, port = address(target)
    with socket.create_connection((host, port), timeout=10) as plain:
        assert not answered(plain), "the coordinator answers in plaintext"
    print("refused: plaintext")
    with tempfile.TemporaryDirectory() as folder:
        for what, pair in (("no certificate", None), ("a certificate of another CA", foreign(Path(folder)))):
            trust = ssl.create_default_context(cafile=ca)
            trust.set_alpn_protocols(["h2"])
            if pair is not None:
                trust.load_cert_chain(*pair)
            with socket.create_connection((host, port), timeout=10) as raw:
                try:
                    with trust.wrap_socket(raw, server_hostname=host) as tls:
                        assert not answered(tls), f"the coordinator answers to {what}"
                except ssl.SSLCertVerificationError:
                    raise
                except ssl.SSLError:  # refused in the handshake
                    pass
            print(f"refused: TLS with {what}")
    trust = ssl.create_default_context(cafile=ui_ca)
    with urllib.request.urlopen(f"https://{ui}/api/v1/health", context=trust, timeout=10) as said:
        assert said.status == 200
    print("healthy: Web UI")


if __name__ == "__main__":
    main(*sys.argv[1:5])
