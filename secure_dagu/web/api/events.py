"""`/events`: streams of live updates and their tickets (REST reference, section 11)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from secure_dagu.errors import InvalidRequest, LimitExceeded, NotFound, Refused, SecureDaguError
from secure_dagu.web.api import bodies
from secure_dagu.web.api.deps import Account, Api, Need, Parts, Viewer, reply
from secure_dagu.web.api.live import Complaint, Reader
from secure_dagu.web.api.stream import EventStream
from secure_dagu.web.api.tickets import LIFETIME_S
from secure_dagu.web.api.topics import MAX_TEXT, topic

router = APIRouter(tags=["events"])


class Ticket(TypedDict):
    """Opens one stream, once: `GET /events/stream?ticket=…`."""

    ticket: str
    expiresIn: int


class TopicError(TypedDict):
    """Why a topic is not carried."""

    topic: str
    code: str
    message: str


class Subscription(TypedDict):
    """What a stream carries now."""

    subscribed: list[str]
    errors: list[TopicError]


@router.post("/events/ticket", response_model=Ticket)
async def make_ticket(request: Request, parts: Api, account: Viewer) -> Response:
    """Get a ticket that opens one stream once within half a minute; a token never belongs into a URL."""
    return reply(request, {"ticket": parts.tickets.issue(account), "expiresIn": int(LIFETIME_S)})


@router.get(
    "/events/stream",
    response_model=None,
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "A stream."}},
)
async def open_stream(
    request: Request, parts: Api,
    topics: Annotated[list[str], Query(alias="topic", max_length=100)] = [],  # noqa: B006 - never changed
    ticket: Annotated[str, Query(max_length=128)] = "",
    lastEventId: Annotated[str, Query(max_length=32)] = "",
) -> Response:  # fmt: skip
    """Open a stream. The first frame says what it carries; then each topic comes whole, and again when it changes."""
    if ticket:
        account: Account = parts.tickets.redeem(ticket)
        if not await parts.gate.still_good(account):
            raise Refused("the account behind the ticket may not read any more")
    else:
        account = await parts.gate.admit(request, Need.READ)
    if len(request.url.query) > MAX_TEXT:
        raise LimitExceeded("the query is too long", why=f"more than {MAX_TEXT} characters")
    last = request.headers.get("last-event-id", lastEventId)
    reader = Reader(account, first_id=int(last) if last.isascii() and last.isdigit() and len(last) < 16 else 0)
    parts.hub.open(reader)
    try:
        reader.control(await _add(parts, account, reader, topics))
    except BaseException:
        parts.hub.close(reader)
        raise
    return EventStream(
        parts.hub, reader, heartbeat_s=parts.heartbeat_s, slow_s=parts.slow_client_s, at_once=parts.write_buffer,
        still_welcome=lambda: parts.gate.still_good(account),
    )  # fmt: skip


@router.post("/events/stream/topics", response_model=Subscription, responses={403: {"model": Subscription}})
async def change_topics(request: Request, parts: Api, account: Viewer, body: bodies.TopicsBody) -> Response:
    """Change what an open stream of one's own carries."""
    reader = parts.hub.readers.get(body.sessionID)
    if reader is None or reader.owner.name != account.name:
        raise NotFound("unknown_session", why="the stream is not open any more", fix="open a new one")
    for text in body.remove:
        parts.hub.unsubscribe(reader, text)
    errors = await _add(parts, account, reader, body.add)
    told: list[TopicError] = [{"topic": e.topic, "code": e.code, "message": e.message} for e in errors]
    is_refused = any(error.code == Refused.code for error in errors)
    shape: Subscription = {"subscribed": sorted(reader.topics), "errors": told}
    return reply(request, shape, status=403 if is_refused else 200)


async def _add(parts: Parts, account: Account, reader: Reader, texts: list[str]) -> list[Complaint]:
    """Subscribe to what can be; return what cannot, and why.

    Raises:
        InvalidRequest: there would be too many.
    """
    wanted = [text for text in dict.fromkeys(texts) if text not in reader.topics]
    if len(reader.topics) + len(wanted) > parts.max_topics:
        raise InvalidRequest("too_many_topics", why=f"a stream carries at most {parts.max_topics}")
    complaints = []
    for text in wanted:
        try:
            parts.hub.subscribe(reader, await topic(parts, account, text))
        except SecureDaguError as error:
            code = "invalid_topic" if isinstance(error, InvalidRequest) else error.code
            complaints.append(Complaint(topic=text[:MAX_TEXT], code=code, message=str(error)))
    return complaints
