"""The settings that gRPC reads once are made before it is imported, or somebody hears of it."""

from __future__ import annotations

import os
import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    # This process made its own settings already, and a child would inherit them.
    fresh = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    return subprocess.run([sys.executable, "-c", code], env=fresh, capture_output=True, text=True, check=False)


def test_fork_support_is_off_and_the_core_is_quiet_before_grpc_comes() -> None:
    done = run(
        "import sys\nfrom secure_dagu.wire import process\nassert 'grpc' not in sys.modules\nprocess.prepare()\n"
        "import os, grpc.aio\nprint(os.environ['GRPC_ENABLE_FORK_SUPPORT'], os.environ['GRPC_VERBOSITY'])"
    )
    assert (done.stdout, done.stderr) == ("0 NONE\n", "")


def test_the_core_knows_the_switch_that_keeps_its_thread_pool_off_the_servers_sockets() -> None:
    """A name that it does not know changes nothing and is told to nobody, for the core is quiet in a service."""
    serve = (
        "import asyncio, os\nfrom secure_dagu.wire import process\n{}process.prepare()\n"
        "os.environ['GRPC_VERBOSITY'] = 'ERROR'\nimport grpc.aio\n"
        "async def main() -> None:\n    server = grpc.aio.server()\n"
        "    await server.start()\n    await server.stop(None)\n"
        "asyncio.run(main())"
    )
    assert "Unknown experiment" not in run(serve.format("")).stderr
    assert "Unknown experiment: no_such" in run(serve.format("os.environ['GRPC_EXPERIMENTS'] = 'no_such'\n")).stderr


def test_preparing_too_late_is_an_error() -> None:
    assert (
        "before its process settings"
        in run("import grpc\nfrom secure_dagu.wire import process\nprocess.prepare()").stderr
    )
