"""Pages of queues: all of them, and one with what runs and what waits."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from msgspec import Struct
from starlette.responses import Response

from secure_dagu.dispatch.operating import FoundRun, QueueView
from secure_dagu.errors import NotFound
from secure_dagu.web.api.deps import Need
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.pages.run_views import RunView, run_view

_PREVIEW = 5
"""Waiting runs of each queue on the list."""
_PAGE = 100

router = APIRouter(include_in_schema=False)


class QueueCard(Struct, frozen=True, kw_only=True):
    """One queue of the list."""

    queue: QueueView
    running: tuple[RunView, ...]
    waiting: tuple[RunView, ...] = ()
    next_cursor: str = ""

    @property
    def percent(self) -> int:
        """Return how much of its limit is in use, 0 to 100."""
        limit = self.queue.max_concurrency
        return min(100, round(100 * len(self.running) / limit)) if limit > 0 else 0


@router.get("/queues")
async def queue_list(request: Request) -> Response:
    """Show every queue."""
    services, person = await entered(request, Need.READ)
    book = services.parts.queues
    cards = []
    for queue in sorted(await book.queues(), key=lambda one: one.name):
        waiting = (await book.items(queue.name, limit=_PREVIEW)).runs if queue.queued else ()
        cards.append(_card(queue, waiting))
    running, capacity = sum(len(card.running) for card in cards), sum(card.queue.max_concurrency for card in cards)
    return render(
        request, person, "queues.html", cards=cards, running=running, capacity=capacity,
        queued=sum(card.queue.queued for card in cards),
        percent=round(100 * running / capacity) if capacity else 0,
    )  # fmt: skip


@router.get("/queues/{name}")
async def queue_page(request: Request, name: str, cursor: Annotated[str, Query(max_length=1024)] = "") -> Response:
    """Show one queue."""
    services, person = await entered(request, Need.READ)
    book = services.parts.queues
    queue = next((one for one in await book.queues() if one.name == name), None)
    if queue is None:
        raise NotFound(f"there is no queue {name!r}")
    page = await book.items(name, limit=_PAGE, cursor=cursor)
    return render(request, person, "queue.html", card=_card(queue, page.runs, page.next_cursor), cursor=cursor)


def _card(queue: QueueView, waiting: tuple[FoundRun, ...], next_cursor: str = "") -> QueueCard:
    return QueueCard(
        queue=queue,
        running=tuple(run_view(FoundRun(document=document)) for document in queue.running),
        waiting=tuple(run_view(found) for found in waiting),
        next_cursor=next_cursor,
    )
