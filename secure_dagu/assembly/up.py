"""One person's cluster: a CA if there is none, a coordinator, a worker beside it, and an invitation for one more."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct

from secure_dagu.assembly import coordinator, recording, worker
from secure_dagu.assembly.process import signals
from secure_dagu.config import write
from secure_dagu.config.load import Loaded
from secure_dagu.config.values import Address
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import ConfigError
from secure_dagu.pki import directory, enrolment, ledger
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.directory import DEFAULT_TRUST_DOMAIN
from secure_dagu.pki.opening import Passphrase
from secure_dagu.security.grants import Grants
from secure_dagu.security.identity import NAME

INVITATION_TTL: Final = timedelta(minutes=15)
"""Long enough to walk to the other machine; `secure-dagu pki token` makes another one at any time."""
ALL_INTERFACES: Final = "0.0.0.0"  # noqa: S104 - the next machine must reach it; nobody is served without a certificate
_PROBE: Final = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): a socket that is connected to it, without sending, knows its own address."""


class Ready(Struct, frozen=True, kw_only=True):
    """What `prepare` made, in words for people."""

    made: tuple[str, ...]


def settings_of_host(loaded: Loaded) -> dict[str, write.Value]:
    """Return what the configuration should say so that another machine finds this one, from flags or the host."""
    own, sources = loaded.settings.coordinator, loaded.sources
    names = list(own.advertise) if sources["coordinator.advertise"] != "default" else own_names()
    host = own.host if sources["coordinator.host"] != "default" else ALL_INTERFACES
    wanted: dict[str, write.Value] = {"coordinator.host": host, "coordinator.advertise": names}
    if sources["coordinator.port"] != "default":
        wanted["coordinator.port"] = own.port
    name = loaded.settings.worker.id if sources["worker.id"] != "default" else local_name()
    return wanted | {"worker.id": name, "worker.coordinators": [str(Address("localhost", own.port))]}


def prepare(loaded: Loaded, *, has_worker: bool, passphrase: Passphrase | None) -> Ready:
    """Make what is missing in the standard place: CA, coordinator's, operator's and worker's certificates.

    Raises:
        ConfigError: this host belongs to another's CA, or something cannot be written.
    """
    pki_dir, now, made = loaded.home.pki_dir, utc_now(), []
    if loaded.settings.peer.insecure:
        raise ConfigError("`up` does not speak plaintext", fix="remove peer.insecure, or run `secure-dagu coordinator`")
    with recording.commands_trail(loaded.home) as record, ledger.watched(lambda one: record(recording.of_ledger(one))):
        actor = f"os:{recording.user()}"
        if not (pki_dir / "ca.crt").exists():
            record(recording.ca_created(DEFAULT_TRUST_DOMAIN))
            done = directory.initialise(
                pki_dir,
                advertised=loaded.settings.coordinator.advertise,
                trust_domain=DEFAULT_TRUST_DOMAIN,
                now=now,
                actor=actor,
            )
            made.append(f"a CA in {pki_dir}, until {done.ca_not_after:%Y-%m-%d}: whoever has ca.key can be anyone")
        elif not directory.ca_key_file(pki_dir).exists():
            raise ConfigError(
                "this host has joined somebody else's cluster",
                why=f"{pki_dir} has a ca.crt without its key",
                fix="run `secure-dagu worker` here; for a cluster of its own use another --dagu-home",
            )
        name = loaded.settings.worker.id.partition("@")[0]
        if has_worker and not (pki_dir / f"{name}.crt").exists():
            directory.issue(
                pki_dir, Role.WORKER, name, out=pki_dir, advertised=(), lifetime=None, force=False, now=now,
                labels=Grants(frozenset(loaded.settings.worker.labels.items())), passphrase=passphrase, actor=actor,
            )  # fmt: skip
            made.append(f"a certificate for the worker {name} on this host")
    return Ready(made=tuple(made))


def invite(loaded: Loaded, name: str) -> str:
    """Make a join token for a worker and return the line to join with."""
    with recording.commands_trail(loaded.home) as record:
        token, offer = enrolment.make_token(
            loaded.home.pki_dir, Role.WORKER, name or next_name(loaded.home.pki_dir), labels=None, ttl=INVITATION_TTL,
            now=utc_now(), actor=f"os:{recording.user()}",
        )  # fmt: skip
        record(recording.token_event(offer))
    own = loaded.settings.coordinator
    return f"{token.reveal()}@{Address(own.advertise[0], own.port)}"


async def run(loaded: Loaded, *, has_worker: bool, ready: Callable[[], None]) -> None:
    """Serve, and work, until SIGTERM or SIGINT; the worker drains before the coordinator stops."""
    with signals() as stop:
        async with coordinator.serving(loaded, stop):
            ready()
            if has_worker and not stop.is_set():
                await worker.run_worker(loaded)
            else:
                await stop.wait()


def own_names() -> list[str]:
    """Return how other machines reach this one: its address in the local network, if it has one, and its name."""
    names = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_PROBE)
            names.insert(0, str(probe.getsockname()[0]))  # first: at home, names often do not resolve
        except OSError:
            pass  # no network yet
    return names


def local_name() -> str:
    """Return this host's name in the form that a certificate may carry."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].strip("-._")
    return name if NAME.fullmatch(name) else "local"


def next_name(pki_dir: Path) -> str:
    """Return the first of worker-2, worker-3, … that no certificate has."""
    found = directory.ledger(pki_dir)
    return next(name for number in itertools.count(2) if not found.current("worker", name := f"worker-{number}"))
