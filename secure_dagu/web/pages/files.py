"""Files of the Web UI. Their URL has a digest of all of them, so a browser may keep what it has for good."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = Path(__file__).parent.parent / "static"
_FOR_GOOD = "public, max-age=31536000, immutable"


@cache
def version() -> str:
    """Return the digest of all files: another one after any change."""
    digest = sha256()
    for path in sorted(FOLDER.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Files(StaticFiles):
    """Serve `VERSION/NAME`; a page of an older version gets today's file, and asks again next time."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file."""
        said, _, name = path.partition("/")
        answer = await super().get_response(name or path, scope)
        answer.headers["Cache-Control"] = _FOR_GOOD if said == version() else "no-cache"
        return answer
