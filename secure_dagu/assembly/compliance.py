"""What a process knows of itself for `security.compliance`: settings, loaded certificates, private files."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secure_dagu.assembly import exceptions, recording
from secure_dagu.assembly.looking import looking
from secure_dagu.audit.log import AuditLog
from secure_dagu.config.load import Loaded
from secure_dagu.config.settings import all_settings
from secure_dagu.errors import SecureDaguError
from secure_dagu.security.compliance import Api, Certificate, Facts, Result, judge
from secure_dagu.security.exceptions import EMPTY
from secure_dagu.telemetry import metrics

if TYPE_CHECKING:
    from secure_dagu.web.api.views_compliance import Evidence

LOOK_EVERY_S: Final = 15.0
"""How old the gauge may be: as old as a usual scrape."""
MAX_KEYS: Final = 1000
"""Keys of one folder that are looked at."""


def controls(loaded: Loaded, trail: AuditLog, api: Api | None = None) -> Callable[[], tuple[Result, ...]]:
    """Return what judges the controls of a process as they stand now. It looks at files and dials nobody."""
    secrets_in_env = tuple(_secrets_in_env(loaded))

    def judged() -> tuple[Result, ...]:
        settings = loaded.settings
        paths = list(_private(loaded))
        facts = Facts(
            is_plaintext=settings.peer.insecure,
            minimum_tls=settings.peer.min_tls_version,
            certificates=[
                Certificate(name=f"{source} ({role})", not_before=begin, not_after=end)
                for (role, source), (begin, end) in metrics.loaded_certificates().items()
            ],
            audit_problem=trail.problem() or trail.damage,
            secrets_in_env=secrets_in_env,
            looked_at=len(paths),
            open_paths=[f"{path} (mode {mode:04o})" for path, mode, is_open in paths if is_open],
            api=api,
        )
        return judge(facts, datetime.now(UTC))

    return judged


def api_of(loaded: Loaded, *, is_https: bool) -> Api:
    """Return how the web server of a process is reached."""
    settings = loaded.settings
    is_carried = settings.tunnel.enabled and not settings.tunnel.https
    return Api(
        host=settings.core.host,
        is_local=exceptions.is_loopback(settings.core.host) and not is_carried,
        is_https=is_https,
        login=settings.auth.mode,
    )


def evidence(loaded: Loaded, trail: AuditLog, judged: Callable[[], tuple[Result, ...]]) -> Evidence:
    """Return everything that a report says. Blocks."""
    from secure_dagu.web.api.views_compliance import Evidence  # a coordinator alone has no web server

    now, problem, ledger = datetime.now(UTC), "", EMPTY
    try:
        ledger = exceptions.read_ledger(loaded.home)
    except SecureDaguError as error:
        problem = error.what
    return Evidence(
        at=now,
        host=socket.gethostname(),
        results=judged(),
        exemptions=tuple(item for item in ledger.exemptions if item.is_valid(now)),
        ledger_problem=problem,
        head=trail.place,
        checked_at=trail.checked_at,
        checked=trail.checked,
        is_checked_whole=trail.is_checked_whole,
    )


@contextlib.asynccontextmanager
async def shown(judged: Callable[[], tuple[Result, ...]]) -> AsyncIterator[None]:
    """Keep the gauge of the controls current for the time of the context."""

    async def look() -> None:
        metrics.controls_judged(await asyncio.to_thread(judged))

    await look()
    async with looking(look, every_s=LOOK_EVERY_S, name="compliance controls"):
        yield


# -- what is looked at -------------------------------------------------------------------------------------------------


def _secrets_in_env(loaded: Loaded) -> Iterator[str]:
    for key, item in all_settings().items():
        name = loaded.sources[key].removeprefix("variable ")
        if not item.is_secret or name not in item.env:
            continue
        proxy = loaded.settings.peer.proxy
        if key == "peer.proxy" and (proxy is None or "@" not in proxy.reveal()):
            continue  # an address without a password is no secret
        yield name


def _private(loaded: Loaded) -> Iterator[tuple[Path, int, bool]]:
    """Yield what nobody else may use and is there: its path, its mode, and whether others may."""
    for path in _places(loaded):
        try:
            found = path.stat()
        except OSError:
            continue
        # As `link.material` says of keys: a mounted secret is root's and readable by one group.
        is_mounted = stat.S_ISREG(found.st_mode) and 0 in (found.st_uid, found.st_gid)
        mode = stat.S_IMODE(found.st_mode)
        yield path, mode, bool(mode & (0o037 if is_mounted else 0o077))


def _places(loaded: Loaded) -> Iterator[Path]:
    settings, home = loaded.settings, loaded.home
    said = (
        settings.peer.key_file, settings.tls.key_file, settings.core.health_key_file, settings.core.metrics_token_file,
        settings.pki.passphrase_file,
    )  # fmt: skip
    yield from (path for path in said if path is not None)
    yield from islice(home.pki_dir.glob("*.key"), MAX_KEYS)
    auth = settings.paths.data_dir / "auth"
    yield from (auth, auth / "token_secret", settings.paths.users_dir, settings.paths.api_keys_dir)
    yield from recording.folders(loaded).values()
    yield exceptions.ledger_file(home)
