"""The CA's key at rest: under a passphrase that OpenSSL opens too, in a token, and never open to others."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as pki
from secure_dagu.pki import hsm, keys, passphrase
from secure_dagu.pki.directory import KeyPlace
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.security.secret import Secret
from tests import needs
from tests.pki.forging import NOW, initialise

WORDS = Secret("korrekt Pferd Batterie ü")
WORKER = load_profiles().roles[Role.WORKER]


def test_openssl_opens_what_we_encrypt_with_scrypt_and_aes(tmp_path: Path) -> None:
    openssl = needs.program("openssl", package="openssl")
    key = keys.new_key("P-384")
    (tmp_path / "key.pem").write_bytes(keys.private_pem(key, WORDS))
    (tmp_path / "words").write_text(WORDS.reveal())
    shown = subprocess.run(
        [openssl, "pkey", "-in", tmp_path / "key.pem", "-passin", f"file:{tmp_path / 'words'}", "-pubout"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert keys.fingerprint(serialization.load_pem_public_key(shown.stdout)) == keys.fingerprint(key.public_key())
    told = subprocess.run([openssl, "asn1parse", "-in", tmp_path / "key.pem"], capture_output=True, check=True).stdout
    assert b"scrypt" in told
    assert b"aes-256-cbc" in told


def test_a_key_under_a_passphrase_signs_with_it_and_not_without(tmp_path: Path) -> None:
    initialise(tmp_path, key=KeyPlace(passphrase=WORDS))
    assert keys.is_encrypted((tmp_path / "ca.key").read_bytes())
    asked: list[int] = []

    def ask() -> Secret:
        asked.append(1)
        return WORDS

    pki.open_ca(tmp_path, ask).issue(WORKER, "gpu-1", now=NOW)
    assert asked == [1]
    with pytest.raises(ConfigError, match="nobody is there to ask"):
        pki.open_ca(tmp_path)
    with pytest.raises(ConfigError, match="cannot be opened"):
        pki.open_ca(tmp_path, lambda: Secret("something else"))


def test_a_key_without_passphrase_asks_nobody(tmp_path: Path) -> None:
    initialise(tmp_path)
    pki.open_ca(tmp_path, lambda: pytest.fail("asked"))


def test_a_passphrase_is_set_changed_and_removed_in_place_and_a_wrong_old_one_changes_nothing(tmp_path: Path) -> None:
    initialise(tmp_path)
    plain = pki.open_ca(tmp_path).certificate.public_key()
    other = Secret("and another one")
    for old, new in [(None, WORDS), (WORDS, other), (other, None)]:
        pki.change_passphrase(tmp_path, None if old is None else lambda old=old: old, new)  # type: ignore[misc]
        text = (tmp_path / "ca.key").read_bytes()
        assert keys.is_encrypted(text) == (new is not None)
        assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
        if new is other:
            with pytest.raises(ConfigError, match="cannot be opened"):
                pki.change_passphrase(tmp_path, lambda: Secret("guess"), None)
            assert (tmp_path / "ca.key").read_bytes() == text
    assert pki.open_ca(tmp_path).certificate.public_key() == plain


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    initialise(tmp_path)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError) as refusal:
        pki.open_ca(tmp_path)
    assert "0640" in refusal.value.why


def test_the_passphrase_comes_from_a_private_file_or_a_systemd_credential(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text(WORDS.reveal() + "\n")
    file.chmod(0o600)
    source = passphrase.unattended(file, {})
    assert source is not None
    assert source().matches(WORDS.reveal())
    assert passphrase.unattended(None, {}) is None
    assert passphrase.unattended(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None
    file.rename(tmp_path / passphrase.CREDENTIAL)
    source = passphrase.unattended(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert source is not None
    assert source().matches(WORDS.reveal())


@pytest.mark.parametrize(("content", "mode"), [(b"x", 0o644), (b"", 0o600), (b"\n", 0o600), (b"a\nb\n", 0o600),
                                               (b"\xff", 0o600), (b"x" * 5000, 0o600)])  # fmt: skip
def test_a_passphrase_file_that_is_open_or_unclear_is_refused(tmp_path: Path, content: bytes, mode: int) -> None:
    (tmp_path / "words").write_bytes(content)
    (tmp_path / "words").chmod(mode)
    with pytest.raises(ConfigError, match="passphrase file"):
        passphrase.read_file(tmp_path / "words")
    with pytest.raises(ConfigError, match="passphrase file"):
        passphrase.read_file(tmp_path / "absent")


def test_a_short_passphrase_is_not_set() -> None:
    with pytest.raises(ConfigError, match="refused"):
        passphrase.check_new(Secret("secret"))


def test_the_command_asks_at_the_terminal_without_echo_and_never_takes_it_as_an_argument(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "secure_dagu.cli.main", "pki", "passphrase"]
    home = {"DAGU_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    initialise(tmp_path / "pki")
    main, end = pty.openpty()
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=home, start_new_session=True)
    os.close(end)
    said = b""
    answers = [WORDS.reveal().encode(), WORDS.reveal().encode()]
    try:
        while chunk := os.read(main, 4096):
            said += chunk
            if answers and said.endswith(b": "):
                os.write(main, answers.pop(0) + b"\n")
    except OSError:  # how a terminal says that the other end is gone
        pass
    finally:
        os.close(main)
    assert process.wait(30) == 0, said.decode()
    assert WORDS.reveal().encode() not in said
    assert keys.is_encrypted((tmp_path / "pki/ca.key").read_bytes())
    refused = subprocess.run([*command, "--passphrase", "x"], env=home, capture_output=True, text=True, check=False)
    assert refused.returncode == 2


# ── a token ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PIN = Secret("123456")
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of a key that could be made in a fresh SoftHSM token."""
    tool = needs.program("softhsm2-util", package="softhsm2")
    pytest.importorskip("pkcs11")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    subprocess.run(
        [tool, "--init-token", "--free", "--label", "our ca", "--so-pin", "87654321", "--pin", PIN.reveal()],
        check=True, capture_output=True,
    )  # fmt: skip
    return f"pkcs11:token=our%20ca;object=ca?module-path={MODULE}"


IN_TOKEN = """
import subprocess, sys
from pathlib import Path
import pytest
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory as pki, hsm
from secure_dagu.pki.directory import KeyPlace
from secure_dagu.security.secret import Secret
from tests.pki.forging import NOW, initialise
from tests.pki.test_keys import PIN, WORKER

home, uri = Path(sys.argv[1]), sys.argv[2]
initialise(home, key=KeyPlace(token=uri, passphrase=PIN))
assert (home / "ca.key").read_text() == uri + "\\n"
made = pki.issue(home, Role.WORKER, "gpu-1", out=None, advertised=(), lifetime=None, force=False, now=NOW,
                 passphrase=lambda: PIN)
signer = pki.open_ca(home, lambda: PIN)._signer
for read in (signer.private_numbers, lambda: signer.private_bytes(None, None, None)):
    with pytest.raises(TypeError, match="stays in the token"):
        read()
with pytest.raises(ConfigError, match="never replaced|already has"):
    hsm.make_key(hsm.parse_uri(uri), "P-384", PIN)
with pytest.raises(ConfigError, match="cannot be used"):
    pki.open_ca(home, lambda: Secret("000000"))
with pytest.raises(ConfigError, match="in a token"):
    pki.change_passphrase(home, lambda: PIN, None)
import pkcs11
with pkcs11.lib(str(hsm.parse_uri(uri).module)).get_token(token_label="our ca").open(user_pin=PIN.reveal()) as session:
    key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY)
    assert key[pkcs11.Attribute.SENSITIVE] and not key[pkcs11.Attribute.EXTRACTABLE]
    with pytest.raises(pkcs11.PKCS11Error):
        key[pkcs11.Attribute.VALUE]
print(made.certificate)
"""


def test_a_key_in_a_token_signs_and_cannot_be_read_out(tmp_path: Path, token: str) -> None:
    # In a process of its own: the module keeps the configuration that it was first loaded with.
    done = subprocess.run(
        [sys.executable, "-c", IN_TOKEN, tmp_path / "pki", token],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ca = x509.load_pem_x509_certificate((tmp_path / "pki/ca.crt").read_bytes())
    made = x509.load_pem_x509_certificate(Path(done.stdout.strip()).read_bytes())
    made.verify_directly_issued_by(ca)
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pkcs11:token=a;object=b", "needs token, object and module-path"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-value=1234", "PIN does not belong"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-source=file:/y", "PIN does not belong"),
        ("pkcs11:token=a;object=b;slot=3?module-path=/x", "unknown"),
        ("pkcs11:token=a;token=c;object=b?module-path=/x", "unknown"),
        ("token=a;object=b?module-path=/x", "needs"),
    ],
)
def test_a_token_uri_names_one_key_and_carries_no_pin(uri: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        hsm.parse_uri(uri)
    assert reason in refusal.value.why
    assert "1234" not in str(refusal.value)


def test_a_module_that_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pkcs11")
    with pytest.raises(ConfigError, match="cannot be used"):
        hsm.open_key(hsm.parse_uri(f"pkcs11:token=a;object=b?module-path={tmp_path / 'x.so'}"), PIN)
