"""Which certificates a process uses: all of the ways to half-configure it are refused by name."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from secure_dagu.config.peers import Insecure, PeerFiles, Purpose, choose_peer
from secure_dagu.config.settings import Peer
from secure_dagu.errors import ConfigError

PKI = Path("/home/pki")
GIVEN = {"cert_file": Path("/t/tls.crt"), "key_file": Path("/t/tls.key"), "client_ca_file": Path("/t/ca.crt")}
HAS_FILES = Peer(**GIVEN)  # type: ignore[arg-type]  # all three


def chosen(
    peer: Peer, present: set[str], purpose: Purpose = Purpose.WORKER, worker_id: str = "gpu-1@7"
) -> PeerFiles | Insecure:
    return choose_peer(peer, purpose, worker_id=worker_id, pki_dir=PKI, exists=lambda path: path.name in present)


@pytest.mark.parametrize(
    ("purpose", "stem"),
    [(Purpose.COORDINATOR, "coordinator"), (Purpose.OPERATOR, "operator"), (Purpose.WORKER, "gpu-1")],
)
def test_the_standard_place_is_used_when_nothing_is_said(purpose: Purpose, stem: str) -> None:
    names = {f"{stem}.crt", f"{stem}.key", "ca.crt"}
    files = chosen(Peer(), names, purpose)
    assert isinstance(files, PeerFiles)
    assert (files.cert, files.key, files.ca) == (PKI / f"{stem}.crt", PKI / f"{stem}.key", PKI / "ca.crt")
    for missing in names:
        with pytest.raises(ConfigError) as refused:
            chosen(Peer(), names - {missing}, purpose)
        assert missing in refused.value.what
        assert "secure-dagu pki" in refused.value.fix


@pytest.mark.parametrize("bits", [bits for bits in product([False, True], repeat=3) if any(bits) and not all(bits)])
def test_every_partial_set_of_files_names_what_is_missing(bits: tuple[bool, bool, bool]) -> None:
    some = {name: path for (name, path), said in zip(GIVEN.items(), bits, strict=True) if said}
    everything = {"tls.crt", "tls.key", "ca.crt", "gpu-1.crt", "gpu-1.key"}
    with pytest.raises(ConfigError) as refused:
        chosen(Peer(**some), everything)  # type: ignore[arg-type]  # some of the three files
    for name in GIVEN.keys() - some.keys():
        assert f"peer.{name}" in refused.value.what


def test_given_files_are_used_when_they_exist_and_named_when_not() -> None:
    files = chosen(HAS_FILES, {"tls.crt", "tls.key", "ca.crt"})
    assert isinstance(files, PeerFiles)
    assert files.source == "peer.*"
    with pytest.raises(ConfigError, match=r"/t/tls\.key"):
        chosen(HAS_FILES, {"tls.crt", "ca.crt"})


def test_plaintext_is_only_ever_chosen_by_its_name() -> None:
    assert isinstance(chosen(Peer(insecure=True), {"gpu-1.crt", "gpu-1.key", "ca.crt"}), Insecure)
    for name, path in GIVEN.items():
        with pytest.raises(ConfigError, match=f"contradicts peer.{name}"):
            chosen(Peer(insecure=True, **{name: path}), set())  # type: ignore[arg-type]  # one of the three files


@pytest.mark.parametrize("insecure", [True, False])
def test_unverified_tls_is_refused_in_every_combination(insecure: bool) -> None:
    with pytest.raises(ConfigError, match="skip_tls_verify"):
        chosen(Peer(insecure=insecure, skip_tls_verify=True), {"gpu-1.crt", "gpu-1.key", "ca.crt"})
