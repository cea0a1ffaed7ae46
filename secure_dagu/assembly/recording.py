"""Where the audit logs of a host are, and how a command records what it does.

One folder has one writer, so commands that run beside a coordinator, perhaps as another user, have a log of their own.
Imports nothing of gRPC or TLS, for every `pki` command does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from secure_dagu.audit import journal
from secure_dagu.audit.events import Action, Detail, Event
from secure_dagu.config.home import Home
from secure_dagu.config.load import Loaded
from secure_dagu.pki.ledger import LedgerEntry, Status
from secure_dagu.pki.tokens import Offer

MAX_SCHEDULERS = 8


def folder_of(loaded: Loaded, source: str) -> Path:
    """Return the log of a process of a data directory: `coordinator`, `server` or `scheduler`.

    One process that is several of them writes the log of the first.
    """
    return loaded.settings.paths.data_dir / ("audit" if source == "coordinator" else f"audit-{source}")


def scheduler_folders(loaded: Loaded) -> list[Path]:
    """Return the logs that schedulers of one data directory may have: each takes the first that nobody writes."""
    first = folder_of(loaded, "scheduler")
    return [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, MAX_SCHEDULERS + 1))]


def folders(loaded: Loaded) -> dict[str, Path]:
    """Return every log that this host may have, by name."""
    processes = {source: folder_of(loaded, source) for source in ("coordinator", "server", "scheduler")}
    more = {path.name.removeprefix("audit-"): path for path in scheduler_folders(loaded)[1:] if path.is_dir()}
    return processes | more | {"commands": commands_folder(loaded.home)}


def commands_folder(home: Home) -> Path:
    """Return the log of what commands did on this host: issued, revoked, read."""
    return home.config_dir / "audit"


@contextlib.contextmanager
def commands_trail(home: Home) -> Iterator[Callable[[Event], None]]:
    """Return what records the events of a command, each on disk when it returns. The actor is the user who runs it.

    Open it before the command does anything: where nothing can be recorded, nothing is done.

    Raises:
        Unavailable: the log cannot be written, or another command holds it for too long.
        IntegrityViolation: the log is damaged.
    """
    actor = f"os:{user()}"
    with journal.opened(commands_folder(home), host=socket.gethostname(), source="command") as log_of_commands:

        def record(event: Event) -> None:
            log_of_commands.append([(event if event.actor else replace(event, actor=actor), datetime.now(UTC))])

        yield record


def ca_created(trust_domain: str) -> Event:
    """Return the event of a new CA."""
    return Event(action=Action.CA_CREATED, target=f"ca:{trust_domain}")


def ca_key_protected(how: str) -> Event:
    """Return the event of a CA key that is now kept another way: `passphrase` or `none`."""
    return Event(action=Action.CA_KEY_PROTECTED, target="ca:key", details={Detail.WHAT: how})


def crl_signed() -> Event:
    """Return the event of a revocation list that is about to be signed."""
    return Event(action=Action.CRL_SIGNED, target="crl")


def rotation_phase(phase: str) -> Event:
    """Return the event of a phase of a CA rotation that is about to begin, or go on."""
    action = {
        "prepare": Action.ROTATION_PREPARED,
        "activate": Action.ROTATION_ACTIVATED,
        "retire": Action.ROTATION_RETIRED,
        "finish": Action.ROTATION_FINISHED,
        "rollback": Action.ROTATION_ROLLED_BACK,
    }[phase]
    return Event(action=action, target="ca")


def of_ledger(entry: LedgerEntry) -> Event:
    """Return the event of a ledger line that is about to be written: a certificate issued, or revoked."""
    if entry.status is Status.REVOKED:
        action, details = Action.CERTIFICATE_REVOKED, {Detail.OWNER: entry.identity}
    else:
        action, details = Action.CERTIFICATE_ISSUED, {Detail.OWNER: entry.identity, Detail.UNTIL: entry.not_after}
    more = {
        Detail.NAMES: ",".join(entry.names), Detail.LABELS: ",".join(entry.labels),
        Detail.FINGERPRINT: entry.fingerprint,
    }  # fmt: skip
    details |= {key: text for key, text in more.items() if text}
    return Event(
        action=action, actor=entry.actor, target=f"certificate:{entry.serial}", reason=entry.reason, details=details
    )


def token_event(offer: Offer, *, is_withdrawn: bool = False) -> Event:
    """Return the record of a join token that a command made or withdrew."""
    return Event(
        action=Action.TOKEN_WITHDRAWN if is_withdrawn else Action.TOKEN_ISSUED,
        target=f"{offer.role.value}:{offer.name}",
        details=enrolled(offer.role.value, offer.labels, offer.names) | {Detail.UNTIL: offer.until},
    )


def enrolled(role: str, labels: tuple[str, ...], names: tuple[str, ...]) -> dict[Detail, str | int]:
    """Return the details of what somebody may be."""
    found: dict[Detail, str | int] = {Detail.ROLE: role}
    if labels:
        found[Detail.LABELS] = ",".join(labels)
    if names:
        found[Detail.NAMES] = ",".join(names)
    return found


def user() -> str:
    """Return who runs this process, by name where it has one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
