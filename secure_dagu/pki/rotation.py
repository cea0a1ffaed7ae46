"""Replace the CA in phases, so that at no moment anybody meets a certificate whose CA it does not know.

prepare    a second CA is made; every bundle gets both. Nothing is signed by the new one yet.
activate   the new CA signs from now on; the certificates of this host are issued anew. Others renew by themselves.
retire     the old CA leaves the bundles: whoever still presents it is refused.
finish     the old key is destroyed, the old certificate archived.

`rotation.json` is written before each phase acts, every act can be done twice, and the act that makes the new CA sign
is one rename. So a command that was killed is run again and goes on where it stopped. `rollback` goes one phase back.

next.crt next.key            the new CA, from prepare to activate (rolled back: until prepare is undone)
previous.crt previous.key    the old one, from activate to finish
rotation.json                how far it is
archive/                     certificates of former CAs, and what became of each rotation
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import crl, directory, files, keys, pair
from secure_dagu.pki.authority import Authority, make_authority
from secure_dagu.pki.certificates import permitted_domains
from secure_dagu.pki.directory import ISSUING, LEDGER, KeyPlace
from secure_dagu.pki.files import Pem
from secure_dagu.pki.names import parse_names
from secure_dagu.pki.opening import Passphrase, load_authority, open_key
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.rotation_state import STATE, Phase, Report, State, read_state, report

ARCHIVE: Final = "archive"

Act = Callable[[str], None]
"""Told after each act, by its name."""


def _ignore(_act: str) -> None:
    pass


class Rotation:
    """The rotation of the CA in one directory."""

    def __init__(self, place: Path, *, passphrase: Passphrase | None = None, after: Act = _ignore) -> None:
        """Take the CA's directory. `after` is told of each act.

        Raises:
            ConfigError: the CA here is an issuing CA under an offline root.
        """
        if (place / ISSUING[0]).exists():
            raise ConfigError(
                "this CA is an issuing CA beneath an offline root",
                why="peers trust the root, so it is replaced without touching anybody's trust",
                fix="make another one with `secure-dagu pki issue-ca`",
            )
        self._place, self._passphrase, self._after = place, passphrase, after

    # ── the phases ───────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, *, now: datetime, key: KeyPlace | None = None) -> State:
        """Make the new CA and put both into the bundle. `key`: where its key is kept; None: as the old one's.

        Raises:
            ConfigError: a rotation is further already, or the disk refuses.
        """
        if (done := self._done(Phase.PREPARE)) is not None:
            return done
        state = self._begin(Phase.PREPARE, {None}, now)
        if not self._has("next.key"):
            place = key or KeyPlace(
                passphrase=self._passphrase() if self._passphrase and self._is_protected() else None
            )
            _, text = directory.make_key(load_profiles().ca.key, place)
            self._write("next.key", text, is_private=True)
        if not self._has("next.crt"):
            old = self._current()
            signer = open_key(self._place / "next.key", (self._place / "next.key").read_bytes(), self._passphrase)
            made = make_authority(
                load_profiles().ca, signer, trust_domain=old.trust_domain,
                permitted=permitted_domains(old.certificate) or (), ledger=self._place / LEDGER, now=now,
            )  # fmt: skip
            self._write("next.crt", made.certificate.public_bytes(Encoding.PEM))
        new = self._certificate("next.crt")
        self._bundle([self._current().certificate, new])
        self._sign_lists(now)
        return self._end(state, new=_fingerprint(new))

    def activate(self, *, now: datetime, actor: str = "") -> State:
        """Let the new CA sign, and issue the certificates of this host anew.

        Raises:
            ConfigError: nothing is prepared, or the disk refuses.
        """
        if (done := self._done(Phase.ACTIVATE)) is not None:
            return done
        state = self._begin(Phase.ACTIVATE, {Phase.PREPARE, Phase.ROLLBACK_ACTIVATE}, now)
        if self._has("next.key"):
            if not self._has("previous.crt"):
                self._write("previous.crt", self._current().certificate.public_bytes(Encoding.PEM))
            self._link("ca.key", "previous.key")
            self._rename("next.key", "ca.key")  # from here the new one signs
        self._bundle([self._current().certificate, self._certificate("previous.crt")])
        self._remove("next.crt")
        self._reissue(now, actor)
        self._sign_lists(now)
        return self._end(state)

    def retire(self, *, now: datetime, force: bool = False) -> State:
        """Take the old CA out of the bundle.

        Raises:
            ConfigError: the new one is not active, somebody still depends on the old one and `force` is false, or the
                disk refuses.
        """
        if (done := self._done(Phase.RETIRE)) is not None:
            return done
        self._check_next(Phase.RETIRE, {Phase.ACTIVATE})
        behind = self.report(now=now).behind
        if behind and not force:
            raise ConfigError(
                f"{len(behind)} still depend on the old CA",
                why=", ".join(f"{one.role}/{one.name}" for one in behind[:10]) + (" …" if len(behind) > 10 else ""),
                fix="wait until they have renewed, or issue theirs anew; --force locks them out now",
            )
        state = self._begin(Phase.RETIRE, {Phase.ACTIVATE}, now)
        self._bundle([self._current().certificate])
        self._sign_lists(now, without=self._certificate("previous.crt"))
        return self._end(state)

    def finish(self, *, now: datetime) -> State:
        """Destroy the old key and archive the old certificate.

        Raises:
            ConfigError: the old CA is not retired, or the disk refuses.
        """
        state = self._begin(Phase.FINISH, {Phase.RETIRE}, now)
        files.make_private_directory(self._place / ARCHIVE)
        if self._has("previous.crt"):
            pem = (self._place / "previous.crt").read_bytes()
            files.write(self._place / ARCHIVE, Pem(f"ca-{state.old[:16]}.crt", pem), replace=True)
            self._after("archive previous.crt")
        self._remove("previous.key")
        self._remove("previous.crt")
        return self._close(replace(state, is_done=True))

    def rollback(self, *, now: datetime, force: bool = False, actor: str = "") -> State:
        """Go one phase back: let the old CA sign again, or forget the new one.

        Raises:
            ConfigError: there is nothing to undo, the old CA is retired already, somebody depends on the new one and
                `force` is false, or the disk refuses.
        """
        state = self.state()
        if state is None:
            raise ConfigError("no rotation is under way", fix="`secure-dagu pki rotate prepare` begins one")
        if state.phase in (Phase.RETIRE, Phase.FINISH):
            raise ConfigError(
                "the old CA is retired: this rotation cannot be undone",
                why="peers have been told to refuse it",
                fix="go on: `secure-dagu pki rotate finish`; another rotation brings another CA",
            )
        if state.phase is Phase.ACTIVATE or (state.phase is Phase.ROLLBACK_ACTIVATE and not state.is_done):
            return self._undo_activate(now, actor)
        return self._undo_prepare(now, force)

    def _undo_activate(self, now: datetime, actor: str) -> State:
        state = self._begin(Phase.ROLLBACK_ACTIVATE, {Phase.ACTIVATE}, now, interrupts=True)
        if not self._has("next.crt"):
            new = next(one for one in self._bundled() if _fingerprint(one) != state.old)
            self._write("next.crt", new.public_bytes(Encoding.PEM))
        if self._has("previous.key"):
            if self._current().certificate != self._certificate("previous.crt"):
                self._link("ca.key", "next.key")
                self._rename("previous.key", "ca.key")  # from here the old one signs again
            else:
                self._remove("previous.key")
        self._bundle([self._current().certificate, self._certificate("next.crt")])
        self._remove("previous.crt")
        self._reissue(now, actor)
        self._sign_lists(now)
        return self._end(state)

    def _undo_prepare(self, now: datetime, force: bool) -> State:
        dependent = [one for one in self.report(now=now).holders if one.ca == "new" or one.seen == "new"]
        if dependent and not force:
            raise ConfigError(
                f"{len(dependent)} depend on the new CA",
                why=", ".join(f"{one.role}/{one.name}" for one in dependent[:10]),
                fix="wait until they have renewed, or issue theirs anew; --force locks them out now",
            )
        state = self._begin(
            Phase.ROLLBACK_PREPARE, {Phase.PREPARE, Phase.ROLLBACK_ACTIVATE}, now, interrupts=True
        )  # fmt: skip
        self._bundle([self._current().certificate])
        gone = self._certificate("next.crt") if self._has("next.crt") else None
        self._remove("next.key")
        self._sign_lists(now, without=gone)
        self._remove("next.crt")
        return self._close(replace(state, is_done=True))

    # ── how it stands ────────────────────────────────────────────────────────────────────────────────────────────────
    def state(self) -> State | None:
        """Return how far it is (`rotation_state.read_state`)."""
        return read_state(self._place)

    def report(self, *, now: datetime) -> Report:
        """Return how it stands (`rotation_state.report`)."""
        return report(self._place, now=now)

    # ── acts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _done(self, phase: Phase) -> State | None:
        """Return the state if the phase is complete: it may have been killed just then, and is run again."""
        state = self.state()
        return state if state is not None and state.phase is phase and state.is_done else None

    def _check_next(self, phase: Phase, after: set[Phase]) -> None:
        state = self.state()
        if state is not None and state.phase is phase and not state.is_done:
            return
        if state is None or not state.is_done or state.phase not in after:
            raise _out_of_order(phase, state)

    def _begin(self, phase: Phase, after: set[Phase] | set[None], now: datetime, *, interrupts: bool = False) -> State:
        """Say in the state file what is about to be done; go on with what was begun."""
        state = self.state()
        if state is not None and state.phase is phase and not state.is_done:
            return state
        known = None if state is None else state.phase
        if known not in after or (state is not None and not state.is_done and not interrupts):
            raise _out_of_order(phase, state)
        if state is None:
            old = _fingerprint(self._current().certificate)
            state = State(phase=phase, is_done=False, old=old, began=now.isoformat(timespec="seconds"))
        else:
            state = replace(state, phase=phase, is_done=False)
        self._save(state)
        return state

    def _end(self, state: State, *, new: str = "") -> State:
        done = replace(state, is_done=True, new=new or state.new)
        self._save(done)
        return done

    def _close(self, state: State) -> State:
        """Move the state file into the archive: the rotation is over."""
        files.make_private_directory(self._place / ARCHIVE)
        name = f"rotation-{state.began.replace(':', '').replace('+0000', 'Z')}.json"
        files.write(self._place / ARCHIVE, Pem(name, msgspec.json.encode(state)), replace=True)
        self._after("archive state")
        self._remove(STATE)
        return state

    def _save(self, state: State) -> None:
        self._write(STATE, msgspec.json.encode(state), is_private=True)

    def _current(self) -> Authority:
        return directory.open_ca(self._place, self._passphrase)

    def _is_protected(self) -> bool:
        return keys.is_encrypted((self._place / "ca.key").read_bytes())

    def _bundled(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self._place / "ca.crt").read_bytes())

    def _bundle(self, cas: Sequence[x509.Certificate]) -> None:
        if self._bundled() != list(cas):
            self._write("ca.crt", b"".join(one.public_bytes(Encoding.PEM) for one in cas))

    def _sign_lists(self, now: datetime, *, without: x509.Certificate | None = None) -> None:
        """Sign the revocation lists anew where there are any, so that each CA in the bundle has one."""
        if not self._has(crl.FILE):
            return
        crl.sign(self._place, signers(self._place, self._passphrase), now=now, without=without)
        self._after("sign lists")

    def _reissue(self, now: datetime, actor: str) -> None:
        """Issue every certificate in this directory anew whose CA is not the one that signs now."""
        ca = self._current()
        for path in sorted(self._place.glob("*.crt")):
            stem = path.stem
            if stem in ("ca", "next", "previous", "issuing") or not (self._place / f"{stem}.key").exists():
                continue
            pair.finish(self._place, stem)
            leaf = x509.load_pem_x509_certificate(path.read_bytes())
            entry = ca.ledger.find(leaf.serial_number)
            if entry is None or entry.issuer == _fingerprint(ca.certificate):
                continue
            rights = ca.ledger.current(entry.role, entry.name) or entry
            made = ca.issue(
                load_profiles().roles[Role(rights.role)], rights.name, now=now, names=parse_names(rights.names),
                labels=rights.grants, actor=actor,
            )  # fmt: skip
            pair.write(self._place, stem, certificate=made.certificate, key=made.key)
            self._after(f"reissue {stem}")

    def _has(self, name: str) -> bool:
        return (self._place / name).exists()

    def _certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self._place / name).read_bytes())

    def _write(self, name: str, data: bytes, *, is_private: bool = False) -> None:
        files.write(self._place, Pem(name, data, is_private=is_private), replace=True)
        self._after(f"write {name}")

    def _link(self, name: str, other: str) -> None:
        """Give a file a second name; nothing when it has it."""
        source, target = self._place / name, self._place / other
        if target.exists():
            return
        os.link(source, target)
        files.sync_directory(self._place)
        self._after(f"link {other}")

    def _rename(self, name: str, other: str) -> None:
        (self._place / name).replace(self._place / other)
        files.sync_directory(self._place)
        self._after(f"rename {name}")

    def _remove(self, name: str) -> None:
        if self._has(name):
            (self._place / name).unlink()
            files.sync_directory(self._place)
            self._after(f"remove {name}")


def signers(place: Path, passphrase: Passphrase | None = None) -> list[Authority]:
    """Return every CA in the bundle whose key is here, the one that signs certificates first."""
    found = [directory.open_ca(place, passphrase)]
    trusted = found[0].trust_pem
    for stem in ("next", "previous"):
        certificate, key = place / f"{stem}.crt", place / f"{stem}.key"
        if not (certificate.exists() and key.exists()) or certificate.read_bytes() not in trusted:
            continue
        other = load_authority(certificate=certificate, key=key, ledger=place / LEDGER, passphrase=passphrase)
        if other.certificate != found[0].certificate:
            found.append(other)
    return found


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


_NEXT = {
    Phase.PREPARE: "activate",
    Phase.ACTIVATE: "retire",
    Phase.RETIRE: "finish",
    Phase.ROLLBACK_ACTIVATE: "activate, or rollback",
}


def _out_of_order(phase: Phase, state: State | None) -> ConfigError:
    if state is None:
        return ConfigError(
            f"{phase.value} comes later", why="no rotation is under way", fix="`secure-dagu pki rotate prepare`"
        )
    word = "rollback" if state.phase.value.startswith("rollback") else state.phase.value
    if not state.is_done:
        return ConfigError(
            f"{phase.value} cannot begin", why=f"{word} was interrupted", fix=f"`secure-dagu pki rotate {word}` goes on"
        )
    return ConfigError(
        f"{phase.value} is not the next phase",
        why=f"{word} is done",
        fix=f"`secure-dagu pki rotate {_NEXT.get(state.phase, 'status')}`",
    )
