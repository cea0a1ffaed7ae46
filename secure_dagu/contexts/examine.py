"""`context test`: from this host outwards, layer by layer; the first that fails is where the fault is.

The key is not sent before the server has been proven and has answered as one of ours.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from secure_dagu.contexts import answers
from secure_dagu.contexts.client import LAYERS, Answer, Client, decoded
from secure_dagu.errors import SecureDaguError
from secure_dagu.security import checkup
from secure_dagu.security.checkup import Check, Name, Told

MAX_DRIFT_S = 60.0
"""How far apart two clocks may be."""
_ORDER = (Name.NAME, Name.ROUTE, Name.TLS, Name.API, Name.LOGIN)


async def examine(client: Client, told: Told) -> list[Check]:
    """Make every check, telling each as it is done; nothing is checked behind a failure."""
    found: list[Check] = []

    def tell(check: Check) -> None:
        found.append(check)
        told(check)

    try:
        await _outwards(client, tell)
    except SecureDaguError as error:
        layer = Name(LAYERS.get(error.reason, "api"))
        passed = {check.check for check in found}
        for name in _ORDER[: _ORDER.index(layer)]:
            if name not in passed and not (name is Name.TLS and client.context.server.is_plaintext):
                tell(checkup.ok(name, _GOOD[name], target=client.context.server.authority))
        tell(checkup.failed(layer, error, target=client.context.server.authority))
    return found


_GOOD = {
    Name.NAME: "the name is known",
    Name.ROUTE: "it takes connections",
    Name.TLS: "it is proven",
    Name.API: "it answers",
}


async def _outwards(client: Client, tell: Told) -> None:
    context = client.context
    server = context.server
    answer = await client.send("GET", "/health", with_key=False)
    tell(checkup.ok(Name.NAME, _GOOD[Name.NAME], target=server.authority))
    tell(checkup.ok(Name.ROUTE, _GOOD[Name.ROUTE], target=server.authority))
    if answer.proven is not None:
        by = context.ca_file or "an authority of this host"
        what = f"proven by {by}; {answer.proven.version}, its certificate ends on {answer.proven.until}"
        tell(checkup.ok(Name.TLS, what, target=server.authority))
    elif context.insecure_http:
        what, why = "no TLS: nobody is proven, and the key can be read on the way", "--insecure-http asked for it"
        tell(checkup.warn(Name.TLS, "plaintext", what, why=why, fix="say https://", target=server.authority))
    else:
        tell(checkup.ok(Name.TLS, "not spoken; it stays on this host", target=server.authority))
    tell(_api(client, answer))
    tell(await _login(client))


def _api(client: Client, answer: Answer) -> Check:
    """Judge what `/health` says; 503 is an answer too."""
    try:
        health = decoded(answer, answers.Health)
    except ValueError:
        raise client.not_an_api(answer) from None
    where = client.context.server.authority
    version = f"version {health.version[:40]}" if health.version else "without a version"
    if health.status != "healthy":
        why = f"its /health says {health.status[:40]}"
        return checkup.warn(Name.API, "unhealthy", f"it answers, {version}, and is not healthy", why=why, target=where)
    drift = _drift_s(answer)
    if abs(drift) > MAX_DRIFT_S:
        return checkup.warn(
            Name.API, "clock", f"healthy, {version}; its clock and ours are {abs(drift):.0f} s apart",
            why="logins, keys and times of runs go by the clock", fix="set both by NTP", target=where,
        )  # fmt: skip
    return checkup.ok(Name.API, f"healthy, {version}", target=where)


def _drift_s(answer: Answer) -> float:
    try:
        return (parsedate_to_datetime(answer.headers.get("date", "")) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


async def _login(client: Client) -> Check:
    """Ask as whom we are known; a server that does not say is asked for one run."""
    target = client.context.server.authority
    answer = await client.send("GET", "/auth/me")
    if answer.status == 404:
        answer = await client.send("GET", "/dag-runs", query=[("limit", "1")])
        if answer.status == 200:
            return checkup.ok(Name.LOGIN, "it lets us in, and does not say as whom", target=target)
    if answer.status != 200:
        raise client.problem(answer)
    try:
        user = decoded(answer, answers.Me).user
    except ValueError:
        raise client.not_an_api(answer) from None
    known = f"known there as {user.username[:100]}" + (f", role {user.role[:40]}" if user.role else "")
    if user.role == "viewer":
        return checkup.warn(
            Name.LOGIN, "viewer", known, why="a viewer may look, and starts, stops and retries nothing",
            fix="ask for a key of role operator if it is to do that", target=target,
        )  # fmt: skip
    return checkup.ok(Name.LOGIN, known, target=target)
