"""`wait.*`: wait for time, a file or an answer (workflow language, section 4.2); a stop ends any of them at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from secure_dagu.dag import durations
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below

POLL_S = 1.0
MIN_POLL_S = 0.01
REQUEST_S = 10.0
CLOCK_S = 60.0
"""How often the wall clock is looked at: it may be set while we wait."""


def _options(context: StepContext) -> Options:
    return Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))


async def duration(context: StepContext) -> Done:
    """Wait for so long."""
    wait_s = durations.seconds(_options(context).needed("duration"), field="with.duration")

    async def wait() -> Done:
        await asyncio.sleep(wait_s)
        return SUCCESS

    return await unless_stopped(context.stop, wait())


async def until(context: StepContext) -> Done:
    """Wait until a moment; one that is past is there already."""
    text = _options(context).needed("until").strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in text.upper():
        raise DefinitionError(f"with.until {text[:50]!r} is no time", why="expected RFC 3339: 2026-01-31T09:00:00Z")

    async def wait() -> Done:
        while (left_s := (moment - datetime.now(UTC)).total_seconds()) > 0:  # noqa: ASYNC110 - nobody tells the time
            await asyncio.sleep(min(left_s, CLOCK_S))
        return SUCCESS

    return await unless_stopped(context.stop, wait())


async def file(context: StepContext) -> Done:
    """Wait until a file is there, or is not."""
    options = _options(context)
    path = path_below(context.cwd, options.needed("path"))
    wanted = options.choice("state", ("exists", "missing"), "exists") == "exists"

    async def is_ready() -> bool:
        return os.path.exists(path) == wanted  # noqa: ASYNC240 - one look

    return await _poll(context, options, is_ready)


async def http(context: StepContext) -> Done:
    """Wait until a server answers with a status; any error and any other status means: not yet."""
    # Its library costs more than all the rest of this module.
    from secure_dagu.runner.executors.http import Request, client, status_of

    options = _options(context)
    status = options.integer("status", 200, minimum=100, maximum=599)
    limit_s = options.seconds("request_timeout", REQUEST_S)
    request = Request.read(options, default_method="GET")

    async with client(context, timeout_s=limit_s) as asking:

        async def is_ready() -> bool:
            return await status_of(asking, request, limit_s) == status

        return await _poll(context, options, is_ready)


async def _poll(context: StepContext, options: Options, is_ready: Callable[[], Awaitable[bool]]) -> Done:
    pause_s = max(options.seconds("poll_interval", POLL_S), MIN_POLL_S)

    async def wait() -> Done:
        while not await is_ready():  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(pause_s)
        return SUCCESS

    return await unless_stopped(context.stop, wait())
