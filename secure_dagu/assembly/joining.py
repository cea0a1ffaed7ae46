"""A machine joins: pin the CA, make a key, redeem the token, keep the certificate, write the configuration."""

from __future__ import annotations

from pathlib import Path

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
    try:
        return Invitation(token=parse_token(token), coordinator=values.address(place))
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
    place, token = home.pki_dir, invitation.token
    if directory.ca_key_file(place).exists():
        raise ConfigError(
            "this host has a CA of its own",
            why=f"{directory.ca_key_file(place)} is one",
            fix="join from another host, or with another --dagu-home",
        )
    if not force:
        holder.refuse_other_trust(place / "ca.crt", token.pin)
    files.make_private_directory(place)  # before the token is spent
    wish, to = holder.Wish(), invitation.coordinator
    answer = await enrol.ask(context.join_policy(token.pin), to.host, to.port, wish.to_join(token.secret), proxy=proxy)
    granted = wish.granted(answer)
    certificate = holder.keep(place, granted)
    return Joined(
        granted=granted,
        certificate=certificate,
        config_file=config_file,
        added=write.add_missing(config_file, _settings(granted, to)),
    )


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
