"""A machine joins: pin the CA, make a key, redeem the token, keep the certificate, write the configuration."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from msgspec import Struct

from secure_dagu.config import values, write
from secure_dagu.config.home import Home
from secure_dagu.config.values import Address
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.link import context, enrol
from secure_dagu.link.proxying import Proxy
from secure_dagu.pki import directory, files, holder
from secure_dagu.pki.holder import Granted
from secure_dagu.pki.tokens import Token, parse_token
from secure_dagu.security.grants import is_reserved
from secure_dagu.security.secret import Secret


class Invitation(Struct, frozen=True, kw_only=True):
    """What `TOKEN@HOST:PORT` says."""

    token: Token
    coordinator: Address


class Joined(Struct, frozen=True, kw_only=True):
    """What a machine has after it joined."""

    granted: Granted
    certificate: Path
    config_file: Path
    added: tuple[str, ...]
    """Keys that were added to the configuration."""


def parse_invitation(text: str) -> Invitation:
    """Read `TOKEN@HOST:PORT`.

    Raises:
        InvalidRequest, ConfigError: it is none.
    """
    token, _, place = text.strip().partition("@")
    return Invitation(token=parse_token(token), coordinator=parse_place(place))


def parse_place(text: str) -> Address:
    """Read `HOST:PORT`; ConfigError: it is none."""
    try:
        return values.address(text.strip())
    except ValueError as problem:
        raise ConfigError(
            "the coordinator's address cannot be read",
            why=str(problem),
            fix="it is TOKEN@HOST:PORT; give the whole line that `secure-dagu pki token` printed",
        ) from problem


async def join(
    invitation: Invitation, home: Home, config_file: Path, *, proxy: Proxy | None = None, force: bool = False
) -> Joined:
    """Redeem a token and put everything in its place; the token is spent only when a certificate came back.

    Args:
        invitation: token and address.
        home: of this host; files go to its standard place.
        config_file: where `worker.id` and `worker.coordinators` are added unless they are there.
        proxy: on the way to the coordinator.
        force: also where this host has another CA, or the name of somebody else.

    Raises:
        LinkUnavailable, LinkRefused, LinkMisconfigured: the coordinator was not reached, or is not the token's.
        Refused: it did not accept the token.
        ConfigError: this host has something that would be replaced, or the disk refuses.
    """
    token, to, wish = invitation.token, invitation.coordinator, holder.Wish()
    _prepare(home.pki_dir, token.pin, force=force)
    answer = await enrol.ask(context.join_policy(token.pin), to.host, to.port, wish.to_join(token.secret), proxy=proxy)
    granted = wish.granted(answer)
    certificate = holder.keep(home.pki_dir, granted)
    return Joined(
        granted=granted,
        certificate=certificate,
        config_file=config_file,
        added=write.add_missing(config_file, _settings(granted, to)),
    )


async def join_as_pod(
    token_file: Path, ca_file: Path, to: Address, home: Home, *, proxy: Proxy | None = None
) -> Joined:
    """Join with what a pod's cluster says of it (`pki.pods`). Its configuration is somebody else's and stays as it is.

    Args:
        token_file: token of its service account, made for this installation of ours.
        ca_file: the one root that it trusts.
        to: the coordinator.
        home: of this pod.
        proxy: on the way to the coordinator.

    Raises:
        as `join`.
    """
    pin, token, wish = _pin(ca_file), _first_line(token_file), holder.Wish()
    _prepare(home.pki_dir, pin, force=False)
    request = wish.to_join_as_pod(token)
    granted = wish.granted(await enrol.ask(context.join_policy(pin), to.host, to.port, request, proxy=proxy))
    return Joined(granted=granted, certificate=holder.keep(home.pki_dir, granted), config_file=token_file, added=())


def _prepare(place: Path, pin: str, *, force: bool) -> None:
    """Refuse, before a token is spent, what would replace something."""
    if directory.ca_key_file(place).exists():
        raise ConfigError(
            "this host has a CA of its own",
            why=f"{directory.ca_key_file(place)} is one",
            fix="join from another host, or with another --dagu-home",
        )
    if not force:
        holder.refuse_other_trust(place / "ca.crt", pin)
    files.make_private_directory(place)


def _pin(ca_file: Path) -> str:
    try:
        (root,) = x509.load_pem_x509_certificates(ca_file.read_bytes())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{ca_file} cannot be used", why=str(problem), fix="give one root certificate") from problem
    return root.fingerprint(hashes.SHA256()).hex()


def _first_line(token_file: Path) -> Secret:
    try:
        return Secret(token_file.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is no text"
        raise ConfigError(f"{token_file} cannot be read", why=why or "", fix="mount the pod's token there") from problem


def _settings(granted: Granted, coordinator: Address) -> dict[str, write.Value]:
    identity = granted.identity
    if identity.role is Role.WORKER:
        settings: dict[str, write.Value] = {"worker.id": identity.name, "worker.coordinators": [str(coordinator)]}
        if labels := claimed(granted.labels):
            settings["worker.labels"] = labels
        return settings
    if identity.role in (Role.ADMIN, Role.DISPATCHER):
        return {"client.coordinators": [str(coordinator)]}
    return {}


def claimed(granted: tuple[str, ...]) -> dict[str, str]:
    """Return the labels that a worker claims with these: all of which there is one value, but security labels."""
    pairs = [label.partition("=")[::2] for label in granted]
    keys = [key for key, _ in pairs]
    return {key: value for key, value in pairs if keys.count(key) == 1 and not is_reserved(key)}
