"""The CA is replaced in phases; a command that is killed after any single act goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509

from secure_dagu.assembly.renewal import Renewal
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError, Unavailable
from secure_dagu.link import context, crl, material
from secure_dagu.pki import crl as lists
from secure_dagu.pki import directory, pair
from secure_dagu.pki.rotation import Rotation, signers
from secure_dagu.pki.rotation_state import Phase

NOW = datetime.now(UTC).replace(microsecond=0)
STEPS = ("prepare", "activate", "retire", "finish")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CA that has revoked somebody."""
    place = tmp_path_factory.mktemp("ca") / "pki"
    directory.initialise(place, advertised=["localhost"], trust_domain="example", now=NOW)
    directory.issue(place, Role.WORKER, "gone", out=None, advertised=[], lifetime=None, force=False, now=NOW)
    ca = directory.open_ca(place)
    lists.revoke(place, [ca], lists.find(ca.ledger, "gone", now=NOW), reason="keyCompromise", now=NOW)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    target = tmp_path / "pki"
    shutil.copytree(made, target)
    return target


def check_usable(place: Path) -> None:
    """Check what must hold at every moment: this host can serve, call and revoke."""
    for name in (directory.COORDINATOR, directory.OPERATOR):
        pair.finish(place, name)
    server = context.server_material(
        cert=place / "coordinator.crt", key=place / "coordinator.key", client_ca=place / "ca.crt",
        advertised=["localhost"],
    )  # fmt: skip
    client = context.client_material(cert=place / "operator.crt", key=place / "operator.key", ca=place / "ca.crt")
    for leaf in (server.leaf, client.leaf):
        assert any(_is_issued_by(leaf, ca) for ca in server.trusted), "a leaf whose CA is not in the bundle"
    directory.open_ca(place)
    if (place / "ca.crl").exists():
        crl.read(place / "ca.crl", material.read_trust(place / "ca.crt"))


def _is_issued_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except Exception:
        return False
    return True


def cas(place: Path) -> int:
    """Return how many CAs the bundle has."""
    return len(material.read_trust(place / "ca.crt"))


def test_a_whole_rotation_leaves_another_ca_and_no_old_key(place: Path) -> None:
    before = directory.open_ca(place)
    rotation = Rotation(place)
    rotation.prepare(now=NOW)
    assert cas(place) == 2
    assert directory.open_ca(place).certificate == before.certificate, "nothing is signed by the new one yet"
    rotation.activate(now=NOW)
    after = directory.open_ca(place)
    assert after.certificate != before.certificate
    assert _is_issued_by(x509.load_pem_x509_certificate((place / "coordinator.crt").read_bytes()), after.certificate)
    rotation.retire(now=NOW)
    assert cas(place) == 1
    rotation.finish(now=NOW)
    assert rotation.state() is None
    assert not [path.name for path in place.iterdir() if path.name.startswith(("next", "previous"))]
    keys = [path for path in place.rglob("*.key") if path.read_bytes() == before_key(place)]
    assert keys == [place / "ca.key"]
    assert after.trust_domain == before.trust_domain
    check_usable(place)


def before_key(place: Path) -> bytes:
    """Return the key that signs now."""
    return (place / "ca.key").read_bytes()


def test_each_ca_in_the_bundle_has_a_list_and_numbers_only_grow(place: Path) -> None:
    rotation = Rotation(place)
    numbers = [lists.read(place).number]
    for step in STEPS[:3]:
        getattr(rotation, step)(now=NOW)
        trusted = material.read_trust(place / "ca.crt")
        found = crl.read(place / "ca.crl", trusted).revocation
        assert {item.issuer for item in found.lists} == {crl.key_of(ca) for ca in trusted}
        numbers.append(found.number)
    assert numbers == sorted(set(numbers))


def test_who_depends_on_the_old_ca_is_told_and_stops_its_retirement(place: Path) -> None:
    directory.issue(place, Role.WORKER, "w1", out=None, advertised=[], lifetime=None, force=False, now=NOW)
    rotation = Rotation(place)
    rotation.prepare(now=NOW)
    rotation.activate(now=NOW)
    assert [f"{one.role}/{one.name}" for one in rotation.report(now=NOW).behind] == ["worker/w1"]
    with pytest.raises(ConfigError, match="1 still depend") as caught:
        rotation.retire(now=NOW)
    assert "worker/w1" in caught.value.why
    directory.issue(place, Role.WORKER, "w1", out=None, advertised=[], lifetime=None, force=True, now=NOW)
    assert not rotation.report(now=NOW).behind
    rotation.retire(now=NOW)


def test_a_live_connection_with_an_old_certificate_counts_although_a_new_one_is_issued(place: Path) -> None:
    rotation = Rotation(place)
    old = directory.open_ca(place).ledger.current("admin", "operator")
    rotation.prepare(now=NOW)
    rotation.activate(now=NOW)
    assert old is not None
    (place / "peers.json").write_text(f'{{"coordinator": "0", "peers": [{{"serial": "{old.serial}"}}]}}')
    assert [(one.name, one.ca, one.seen) for one in rotation.report(now=NOW).behind] == [("operator", "new", "old")]


@pytest.mark.parametrize("undo", [1, 2])
def test_a_rollback_goes_one_phase_back(place: Path, undo: int) -> None:
    before = directory.open_ca(place).certificate
    rotation = Rotation(place)
    rotation.prepare(now=NOW)
    rotation.activate(now=NOW)
    for _ in range(undo):
        rotation.rollback(now=NOW)
        check_usable(place)
    assert directory.open_ca(place).certificate == before
    assert cas(place) == 3 - undo
    if undo == 1:
        rotation.activate(now=NOW)
        assert directory.open_ca(place).certificate != before
    else:
        assert rotation.state() is None


def test_after_the_retirement_nothing_is_undone(place: Path) -> None:
    rotation = Rotation(place)
    for step in STEPS[:3]:
        getattr(rotation, step)(now=NOW)
    with pytest.raises(ConfigError, match="cannot be undone"):
        rotation.rollback(now=NOW)


@pytest.mark.parametrize("step", STEPS[1:])
def test_phases_come_in_their_order(place: Path, step: str) -> None:
    with pytest.raises(ConfigError, match=r"comes later|not the next"):
        getattr(Rotation(place), step)(now=NOW)


def test_an_interrupted_phase_must_go_on_before_the_next(place: Path) -> None:
    def stop(_act: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rotation(place, after=stop).prepare(now=NOW)
    with pytest.raises(ConfigError, match="cannot begin"):
        Rotation(place).activate(now=NOW)
    assert Rotation(place).prepare(now=NOW).phase is Phase.PREPARE


def killed_after(place: Path, step: str, act: int) -> bool:
    """Run a phase in a process of its own that is killed after its nth act; False when it had fewer."""
    done = 0

    def after(_act: str) -> None:
        nonlocal done
        done += 1
        if done == act:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            getattr(Rotation(place, after=after), step)(now=NOW)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("step", [*STEPS, "rollback-1", "rollback-2"])
def test_a_phase_killed_after_any_act_goes_on_where_it_stopped(place: Path, tmp_path: Path, step: str) -> None:
    """Every act is the last one once; after each death the host is usable, and the command run again completes."""
    name = step.partition("-")[0]
    ready = {"rollback-1": ("prepare", "activate"), "rollback-2": ("prepare", "activate", "rollback")}
    for before in ready.get(step, STEPS[: STEPS.index(name)] if name in STEPS else ()):
        getattr(Rotation(place), before)(now=NOW)
    act = 1
    while True:
        copy = tmp_path / f"try-{act}"
        shutil.copytree(place, copy)
        was_killed = killed_after(copy, name, act)
        check_usable(copy)
        if not was_killed:
            break
        state = getattr(Rotation(copy), name)(now=NOW) if Rotation(copy).state() is not None else None
        assert state is None or state.is_done
        check_usable(copy)
        act += 1
    assert act > 2, "a phase has several acts"


def test_a_ca_under_a_root_is_replaced_without_a_rotation(place: Path) -> None:
    shutil.copy(place / "ca.crt", place / "issuing.crt")
    with pytest.raises(ConfigError, match="issuing CA"):
        Rotation(place)


def test_in_a_rotation_both_cas_can_revoke(place: Path) -> None:
    rotation = Rotation(place)
    rotation.prepare(now=NOW)
    rotation.activate(now=NOW)
    both = signers(place)
    assert len(both) == 2
    later = NOW + timedelta(minutes=1)
    signed = lists.revoke(
        place, both, lists.find(both[0].ledger, "operator", now=later), reason="superseded", now=later
    )
    assert len(signed.entries) == 3, "the old operator certificate, the new one, and who was revoked before"


async def test_a_certificate_of_the_old_ca_is_renewed_as_soon_as_the_new_one_signs(place: Path) -> None:
    directory.issue(place, Role.WORKER, "w1", out=None, advertised=[], lifetime=None, force=False, now=NOW)
    asked = 0

    async def renew() -> NoReturn:
        nonlocal asked
        asked += 1
        raise Unavailable("nobody is there")

    renewal = Renewal(place / "issued" / "w1" / "w1.crt", renew, rejoin="", ca=place / "ca.crt")
    rotation = Rotation(place)
    await renewal.look()
    rotation.prepare(now=NOW)
    await renewal.look()
    assert asked == 0, "nothing is signed by the new CA yet"
    rotation.activate(now=NOW)
    await renewal.look()
    assert asked == 1
