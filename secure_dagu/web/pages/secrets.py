"""The page of managed secrets: which there are and who names them; a value is written here and never shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from secure_dagu.dispatch.operating import Workflow
from secure_dagu.store.secret_files import GLOBAL, MAX_SECRET, REFERENCE
from secure_dagu.web.api.deps import Need
from secure_dagu.web.pages.frame import entered, render
from secure_dagu.web.threads import on_thread

router = APIRouter(include_in_schema=False)

_PATTERN = REFERENCE.pattern.replace("-]", r"\-]")
"""As browsers read it: they take a dash at the end of a class only with a backslash."""


@router.get("/secrets")
async def secrets(request: Request) -> Response:
    """Show every managed secret, without its value."""
    services, person = await entered(request, Need.AUDIT)
    parts = services.parts
    kept = await on_thread(lambda: parts.secrets.list(GLOBAL))
    used = users_of(await parts.workflows.all())
    return render(
        request, person, "secrets.html", secrets=kept, used=used, pattern=_PATTERN, most=MAX_SECRET,
        missing=sorted(used.keys() - {one.ref for one in kept}), has_coordinator=parts.has_coordinator(),
    )  # fmt: skip


def users_of(workflows: Iterable[Workflow]) -> Mapping[str, list[tuple[str, str]]]:
    """Return which definitions, (file, name) by name, declare each reference, in sub-DAGs of theirs too."""
    used: dict[str, list[tuple[str, str]]] = {}
    for workflow in workflows:
        if workflow.definition is None:
            continue
        dags = (workflow.definition.main, *workflow.definition.locals.values())
        for ref in sorted({secret.ref for dag in dags for secret in dag.secrets if secret.ref}):
            used.setdefault(ref, []).append((workflow.file, workflow.name))
    return used
