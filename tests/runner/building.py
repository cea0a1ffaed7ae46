"""Build DAGs in tests: a directory with sources and the store of what was made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from secure_dagu.runner.api import RunRequest
from secure_dagu.runner.runner import execute
from tests.runner.harness import DEADLINE_S, Children, Seen, make_request

ONE = """
type: build
steps:
  - id: make
    inputs: [{name: src, path: in.txt}]
    outputs: [{name: out, path: out/made.txt}]
    run: tr a-z A-Z < ${inputs.src} > ${outputs.out}; echo ran
"""


class Site:
    """A directory with sources, and what the engine keeps of its builds; each run has folders of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.src = base / "src"
        self.store = base / "data" / "materializations"
        self.runs = 0
        self.src.mkdir()
        (self.src / "in.txt").write_text("hello")

    @property
    def made(self) -> Path:
        return self.src / "out" / "made.txt"

    def request(self, text: str = ONE, changes: Mapping[str, Any] | None = None, **more: Any) -> RunRequest:
        self.runs += 1
        request = make_request(text, self.base / f"run{self.runs}", **more)
        return replace(request, **{"materializations": self.store, "dag_dir": self.src, **(changes or {})})

    async def run(
        self,
        text: str = ONE,
        *,
        stop: asyncio.Event | None = None,
        seen: Seen | None = None,
        changes: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Seen:
        seen = seen or Seen()
        async with asyncio.timeout(DEADLINE_S):
            await execute(self.request(text, changes, **more), seen, Children(), stop=stop or asyncio.Event())
        return seen

    def leftovers(self) -> list[str]:
        return [path.name for path in self.src.rglob(".secure-dagu-*")]


CHAIN = """
type: build
steps:
  - id: last
    inputs: [{name: x, path: b.txt}]
    outputs: [{name: y, path: c.txt}]
    run: cat ${inputs.x} ${inputs.x} > ${outputs.y}
  - id: first
    inputs: [{name: x, path: ./sub/../in.txt}]
    outputs: [{name: y, path: b.txt}]
    run: cut -c1 ${inputs.x} > ${outputs.y}
  - id: read
    depends: last
    run: cat ${steps.last.outputs.y}; echo ${steps.first.outputs.y}
"""


def told(seen: Seen, step: str = "make") -> str:
    found = seen.details()[step]["build"]
    return f"{found['decision']} ({found['reason']})"
