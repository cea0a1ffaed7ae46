"""`secure-dagu artifacts`: list the files that a run left behind, or fetch them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from secure_dagu.cli import remote
from secure_dagu.cli.text import safe, table
from secure_dagu.errors import IntegrityViolation, NotFound

if TYPE_CHECKING:
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import Caller
    from secure_dagu.run.model import DagRunRef

SUMMARY = "List the artifacts of a run, or fetch them with --out."
EXAMPLE = "secure-dagu artifacts etl -r 0Jf3kQ --out=./results"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag", metavar="DAG", help="the DAG's name")
    parser.add_argument("path", metavar="PATH", nargs="*", help="only these artifacts (default: all)")
    parser.add_argument("-r", "--run-id", metavar="ID", help="which run (default: the newest)")
    parser.add_argument("-o", "--out", metavar="DIR", help="fetch them into this folder")
    remote.add_flags(parser)


async def run(args: argparse.Namespace) -> int:
    """Print the list, or fetch the files."""
    async with remote.connect(args) as (coordinator, caller):
        ref = await remote.find_run(coordinator, caller, args.dag, args.run_id)
        found = await coordinator.artifacts(caller, run=ref)
        if args.path:
            missing = set(args.path) - {item.path for item in found}
            if missing:
                raise NotFound(f"run {ref} has no artifact {sorted(missing)[0]!r}", fix="list them without PATH")
            found = [item for item in found if item.path in args.path]
        for item in found:
            if args.out:
                await _fetch(coordinator, caller, ref, item.path, item.size_bytes, Path(args.out))
        if args.json:
            files = [{"path": item.path, "sizeBytes": item.size_bytes} for item in found]
            print(json.dumps({"run": str(ref), "artifacts": files}, ensure_ascii=False))
        elif args.out:
            print("\n".join(str(Path(args.out) / item.path) for item in found))
        else:
            print("\n".join(table([("SIZE", "PATH"), *((str(i.size_bytes), safe(i.path)) for i in found)])))
    return 0


async def _fetch(coordinator: Coordinator, caller: Caller, ref: DagRunRef, path: str, total: int, out: Path) -> None:
    """Write one artifact below `out`; the name came from elsewhere and must not climb."""
    from secure_dagu.cli.progress import Progress

    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise IntegrityViolation(f"the artifact name {path!r} climbs out of its folder", why="the coordinator sent it")
    target = out.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    with partial.open("wb") as file, Progress(safe(path), total=total) as progress:
        async for piece in progress.count(coordinator.read_artifact(caller, run=ref, path=path)):
            file.write(piece)
    partial.replace(target)
