"""What can be read of a run, root or called by another: details, definition, logs, artifacts, outputs.

The same endpoints exist below `/dag-runs/{name}/{dagRunId}` and below its `/sub-dag-runs/{subDAGRunId}`.
Annotations are values here, not texts: those of the endpoints name what is local to `routes`.
"""

import base64
import mimetypes
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter, Depends, Query, Request
from msgspec import Struct
from starlette.responses import Response, StreamingResponse
from typing_extensions import TypedDict

from secure_dagu.dispatch.model import ArtifactInfo
from secure_dagu.errors import InvalidRequest, NotFound
from secure_dagu.run.model import DagRunRef, StepStatus
from secure_dagu.web.api import bodies, shapes_runs, views_runs
from secure_dagu.web.api.deps import (
    Api,
    Change,
    Empty,
    Operator,
    Parts,
    Viewer,
    attachment,
    empty,
    recorded,
    reply,
)
from secure_dagu.web.api.queries import DagName, FilePath, LogQuery, RunId, StepName, Stream, SubRunId

_TEXT_MAX = 2 * 1024 * 1024
_IMAGE_MAX = 5 * 1024 * 1024
_MARKDOWN = (".md", ".markdown")
_HTML = (".html", ".htm")
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


class Target(Struct, frozen=True, kw_only=True):
    """Which run: a root, and where `child` is set, one below it."""

    run: DagRunRef
    child: str = ""

    @property
    def word(self) -> str:
        """Return how the audit log calls it."""
        return f"run:{self.run.name}/{self.run.run_id}" + (f"/{self.child}" if self.child else "")

    @property
    def file_stem(self) -> str:
        """Return how downloads of it begin."""
        return f"{self.run.name}-{self.child or self.run.run_id}"


def root(name: DagName, dagRunId: RunId) -> Target:
    """Return the root run of a path."""
    return Target(run=DagRunRef(name, dagRunId))


def child(name: DagName, dagRunId: RunId, subDAGRunId: SubRunId) -> Target:
    """Return the run below a root run of a path."""
    return Target(run=DagRunRef(name, dagRunId), child=subDAGRunId)


class ArtifactItem(TypedDict):
    """A file or a directory of artifacts."""

    name: str
    path: str
    type: Literal["file", "directory"]
    size: NotRequired[int]
    children: NotRequired[list["ArtifactItem"]]


class ArtifactList(TypedDict):
    """The artifacts of a run."""

    items: list[ArtifactItem]


class ArtifactPreview(TypedDict):
    """What can be shown of an artifact. `content` of an image is base64."""

    name: str
    path: str
    kind: Literal["markdown", "html", "text", "image", "binary"]
    mimeType: str
    size: int
    tooLarge: bool
    truncated: bool
    content: NotRequired[str]


def routes(prefix: str, target: Callable[..., Target]) -> APIRouter:
    """Return the endpoints below `prefix`, whose path parameters `target` takes."""
    router = APIRouter(prefix=prefix, tags=["dag-runs"])
    At = Annotated[Target, Depends(target)]

    async def details(request: Request, parts: Api, _: Viewer, at: At) -> Response:
        """Show a run whole."""
        return reply(request, await views_runs.run_page(parts.runs, at.run, child=at.child, api=parts.api_path))

    async def spec(request: Request, parts: Api, _: Viewer, at: At) -> Response:
        """Show the definition that the run was started with."""
        return reply(request, {"spec": await parts.runs.definition(at.run, child=at.child)})

    async def log(request: Request, parts: Api, _: Viewer, at: At, query: Annotated[LogQuery, Query()]) -> Response:
        """Show lines of the run's own log."""
        return reply(request, shapes_runs.log_shape(await parts.runs.log(at.run, query.window(), child=at.child)))

    async def log_download(parts: Api, _: Viewer, at: At) -> Response:
        """Download the run's own log."""
        content = parts.runs.log_bytes(at.run, child=at.child)
        return await _download(content, f"{at.file_stem}-scheduler.log", "text/plain; charset=utf-8")

    async def step_log(
        request: Request, parts: Api, _: Viewer, at: At, stepName: StepName, query: Annotated[LogQuery, Query()],
        stream: Stream = "stdout",
    ) -> Response:  # fmt: skip
        """Show lines of a step's log."""
        page = await parts.runs.log(at.run, query.window(), step=stepName, stream=stream, child=at.child)
        return reply(request, shapes_runs.log_shape(page))

    async def step_log_download(
        parts: Api, _: Viewer, at: At, stepName: StepName, stream: Stream = "stdout"
    ) -> Response:
        """Download a step's log."""
        content = parts.runs.log_bytes(at.run, step=stepName, stream=stream, child=at.child)
        name = f"{at.file_stem}-{stepName}-{stream}.log"
        return await _download(content, name, f"text/plain; charset={parts.log_charset}")

    async def step_status(
        request: Request, parts: Api, account: Operator, at: At, stepName: StepName, body: bodies.StepStatusBody
    ) -> Response:
        """Correct the status of a step of a finished run; that of the run follows."""
        await recorded(request, Change.STEP_STATUS, at.word)
        await parts.launching.set_step_status(
            at.run, stepName, StepStatus(body.status), actor=account.name, child=at.child
        )
        return empty()

    async def artifacts(request: Request, parts: Api, _: Viewer, at: At, recursive: bool = False) -> Response:
        """List the artifacts of a run."""
        found = await parts.runs.artifacts(at.run, child=at.child)
        return reply(request, {"items": tree(found, is_recursive=recursive)})

    async def preview(request: Request, parts: Api, _: Viewer, at: At, path: FilePath) -> Response:
        """Show what can be shown of an artifact."""
        await recorded(request, Change.ARTIFACT_READ, f"{at.word}/{path}")
        return reply(request, await _preview(parts, at, path))

    async def download(request: Request, parts: Api, _: Viewer, at: At, path: FilePath) -> Response:
        """Download an artifact."""
        await _artifact(parts, at, path)
        await recorded(request, Change.ARTIFACT_READ, f"{at.word}/{path}")
        content = parts.runs.artifact_bytes(at.run, path, child=at.child)
        return await _download(content, path.rpartition("/")[2], "application/octet-stream")

    async def outputs(request: Request, parts: Api, _: Viewer, at: At) -> Response:
        """Show what a run published."""
        return reply(request, await views_runs.outputs(parts.runs, at.run, child=at.child))

    text: dict[int | str, Any] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The log."}
    }
    file: dict[int | str, Any] = {
        200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}, "description": "The file."}
    }
    logs: Any = {"response_model": None, "response_class": Response}
    router.add_api_route("/spec", spec, response_model=views_runs.SpecOnly)
    router.add_api_route("/log", log, response_model=shapes_runs.Log)
    router.add_api_route("/log/download", log_download, responses=text, **logs)
    router.add_api_route("/artifacts", artifacts, response_model=ArtifactList)
    router.add_api_route("/artifacts/preview", preview, response_model=ArtifactPreview)
    router.add_api_route("/artifacts/download", download, responses=file, **logs)
    router.add_api_route("/outputs", outputs, response_model=views_runs.Outputs)
    router.add_api_route("/steps/{stepName:path}/log", step_log, response_model=shapes_runs.Log)
    router.add_api_route("/steps/{stepName:path}/log/download", step_log_download, responses=text, **logs)
    router.add_api_route("/steps/{stepName:path}/status", step_status, methods=["PATCH"], response_model=Empty)
    router.add_api_route("", details, response_model=views_runs.RunDetailsPage)
    return router


def tree(files: Sequence[ArtifactInfo], *, is_recursive: bool) -> list[ArtifactItem]:
    """Return files as a tree, directories first; not recursive: what is at the top."""
    top: list[ArtifactItem] = []
    folders: dict[str, list[ArtifactItem]] = {"": top}
    for info in sorted(files, key=lambda item: item.path):
        *parents, name = info.path.split("/")
        path, level = "", top
        for parent in parents:
            path = f"{path}/{parent}" if path else parent
            if path not in folders:
                folders[path] = []
                level.append({"name": parent, "path": path, "type": "directory", "children": folders[path]})
            level = folders[path]
        level.append({"name": name, "path": info.path, "type": "file", "size": info.size_bytes})
    for level in folders.values():
        level.sort(key=lambda item: (item["type"], item["name"]))
    if not is_recursive:
        for item in top:
            item.pop("children", None)
    return top


async def _artifact(parts: Parts, at: Target, path: str) -> ArtifactInfo:
    """Return the file of a path.

    Raises:
        NotFound: there is none, or the path is none that an artifact can have.
    """
    words = path.split("/")
    if "\\" in path or "\0" in path or any(word in ("", ".", "..") for word in words):
        raise NotFound("there is no such artifact")
    for info in await parts.runs.artifacts(at.run, child=at.child):
        if info.path == path:
            return info
    raise NotFound("there is no such artifact")


async def _preview(parts: Parts, at: Target, path: str) -> ArtifactPreview:
    info = await _artifact(parts, at, path)
    mime = mimetypes.guess_type(path, strict=False)[0] or "application/octet-stream"
    is_image = mime in _IMAGES
    limit = _IMAGE_MAX if is_image else _TEXT_MAX
    is_too_large = is_image and info.size_bytes > limit
    data = b""
    if not is_too_large:
        async for piece in parts.runs.artifact_bytes(at.run, path, child=at.child):
            data += piece[: limit - len(data)]
            if len(data) >= limit:
                break
    shape: ArtifactPreview = {
        "name": path.rpartition("/")[2],
        "path": path,
        "kind": "image" if is_image else "binary",
        "mimeType": mime,
        "size": info.size_bytes,
        "tooLarge": is_too_large,
        "truncated": not is_image and info.size_bytes > limit,
    }
    if is_image:
        if not is_too_large:
            shape["content"] = base64.b64encode(data).decode()
        return shape
    if b"\0" in data:
        return shape
    shape["kind"] = (
        "markdown" if path.lower().endswith(_MARKDOWN) else "html" if path.lower().endswith(_HTML) else "text"
    )
    shape["content"] = data.decode("utf-8", "replace")
    return shape


async def _download(content: AsyncIterator[bytes], name: str, media_type: str) -> Response:
    """Return a download; what is not there is found out before the answer begins."""
    try:
        first = await anext(content)
    except StopAsyncIteration:
        first = b""

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for piece in content:
            yield piece

    headers = {
        "Content-Disposition": attachment(name),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
    }
    return StreamingResponse(whole(), media_type=media_type, headers=headers)


def no_latest(run_id: str) -> None:
    """Refuse `latest` where something is changed: it may be another run by then.

    Raises:
        InvalidRequest: it is `latest`.
    """
    if run_id == "latest":
        raise InvalidRequest("latest names no run that can be changed", fix="give its run id")
