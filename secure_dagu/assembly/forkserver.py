"""The fork server as a server with a coordinator starts it: its runs send sub-DAGs to the workers that they select.

What the configuration says in variables comes on standard input, and never stands in the environment of a run.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from secure_dagu.config.load import Loaded, process_environment
from secure_dagu.local import forkserver
from secure_dagu.local.sent_children import Remote

if TYPE_CHECKING:
    from secure_dagu.dispatch.api import Coordinator
    from secure_dagu.dispatch.model import Caller


def told(loaded: Loaded) -> Mapping[str, Any]:
    """Return what the fork server is told of the way to coordinators."""
    return {
        "home": str(loaded.home.config_dir) if loaded.home.said in ("--dagu-home", "DAGU_HOME") else None,
        "config": str(loaded.config_file) if loaded.config_file else None,
        "environ": dict(process_environment()),
        "by_default": loaded.settings.core.default_execution_mode == "distributed",
    }


def remote(found: Mapping[str, Any]) -> Remote:
    """Return the way; the certificate is read and a coordinator dialled when a sub-DAG needs it."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[tuple[Coordinator, Caller]]:
        from secure_dagu.assembly.operator import operator
        from secure_dagu.config.load import load

        args = argparse.Namespace(dagu_home=found["home"], config=found["config"])
        async with operator(load(args, found["environ"])) as opened:
            yield opened

    return Remote(connect=connect, distributed_by_default=bool(found["by_default"]))


if __name__ == "__main__":
    forkserver.main(remote)
