"""Certificates on the CA's own host are renewed there: the coordinator's, the operator's (`assembly.renewal`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from secure_dagu.assembly import enrolment, recording
from secure_dagu.assembly.renewal import Renewal, kept
from secure_dagu.audit.events import Trail
from secure_dagu.config.load import Loaded, peer_files
from secure_dagu.config.peers import STANDARD, Insecure, Purpose
from secure_dagu.pki import directory, holder, ledger
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.enrolment import Desk
from secure_dagu.pki.holder import Granted, Wish
from secure_dagu.pki.term import read_term

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def kept_renewed(loaded: Loaded, desk: Desk | None, trail: Trail) -> AsyncIterator[None]:
    """Renew the coordinator's and the operator's certificate on the CA's own host, for the time of the context."""
    if desk is None:
        yield
        return
    async with contextlib.AsyncExitStack() as stack:
        for path in _own(loaded):
            renewal = Renewal(
                path,
                lambda path=path: _sign_here(desk, path, trail),  # type: ignore[misc]
                rejoin=f"restart the coordinator, or `secure-dagu pki renew {path.stem}`",
            )
            await stack.enter_async_context(kept(renewal, None))
        yield


def renew_ended(loaded: Loaded, desk: Desk | None) -> None:
    """Renew, before it is loaded, what lies on the CA's own host and has ended: a machine that slept needs no help.

    Raises:
        SecureDaguError: it cannot be renewed.
    """
    for path in _own(loaded) if desk is not None else ():
        term = read_term(path)
        if utc_now() < term.not_after or desk is None:
            continue
        wish = Wish()
        with recording.commands_trail(loaded.home) as record, ledger.watched(lambda e: record(recording.of_ledger(e))):
            granted = wish.granted(desk.renew_here(term, wish.to_renew(), now=utc_now()).document)
        holder.keep(path.parent, granted, stem=path.stem)
        log.warning("renewal.done_late", identity=granted.identity.uri, ended=f"{term.not_after:%Y-%m-%d %H:%M}Z")


def _own(loaded: Loaded) -> tuple[Path, ...]:
    files = peer_files(loaded, Purpose.COORDINATOR)
    if isinstance(files, Insecure) or files.source != STANDARD:
        return ()
    return tuple(
        path
        for stem in (directory.COORDINATOR, directory.OPERATOR)
        if (path := loaded.home.pki_dir / f"{stem}.crt").exists()
    )


async def _sign_here(desk: Desk, path: Path, trail: Trail) -> Granted:
    wish = Wish()
    record = enrolment.from_thread(trail, asyncio.get_running_loop(), recording.of_ledger)

    def sign() -> bytes:
        with ledger.watched(record):
            return desk.renew_here(read_term(path), wish.to_renew(), now=utc_now()).document

    return wish.granted(await asyncio.to_thread(sign))
