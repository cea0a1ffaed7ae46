"""What operator commands share: reach a coordinator, name a run."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from secure_dagu.cli.flags import add_settings_flags
from secure_dagu.errors import NotFound

if TYPE_CHECKING:
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import Caller
    from secure_dagu.run.model import DagRunRef

PIECE_BYTES = 2**20


def add_flags(parser: argparse.ArgumentParser, *, json_output: bool = True) -> None:
    """Declare whom to dial and with which certificate."""
    if json_output:
        parser.add_argument("--json", action="store_true", help="print one JSON document with stable keys")
    add_settings_flags(parser, ("client", "peer"))


@asynccontextmanager
async def connect(args: argparse.Namespace) -> AsyncIterator[tuple[Coordinator, Caller]]:
    """Open the way to the coordinator."""
    from secure_dagu.assembly.operator import operator
    from secure_dagu.config.load import load

    async with operator(load(args)) as opened:
        yield opened


async def find_run(coordinator: Coordinator, caller: Caller, dag: str, run_id: str | None) -> DagRunRef:
    """Return the run that was named, or the newest one of the DAG.

    Raises:
        NotFound: the DAG has no runs.
    """
    from secure_dagu.run.model import DagRunRef

    if run_id:
        return DagRunRef(dag, run_id)
    newest = await coordinator.runs(caller, name=dag, run_id=None, limit=1)
    if not newest:
        raise NotFound(f"DAG {dag} has no runs", fix="list all runs with `secure-dagu status`")
    return newest[0].run


def base_config(args: argparse.Namespace) -> str:
    """Return the text of the base configuration that travels with a task; empty when there is none."""
    from secure_dagu.config.load import load

    path = load(args).settings.paths.base_config
    return path.read_text() if path.is_file() else ""


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield data in pieces that fit a message."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
