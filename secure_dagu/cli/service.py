"""What the service commands share: load the configuration, set up logging, run until told to stop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from secure_dagu.cli.flags import add_settings_flags


def add_flags(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """Declare the flags of some settings sections."""
    add_settings_flags(parser, sections)


async def run(args: argparse.Namespace, what: str) -> int:
    """Run the service; returns 0 after an orderly stop."""
    from secure_dagu.config.load import load

    loaded = load(args, apart=True)  # before any thread: what parses settings need not stay in memory
    from secure_dagu.telemetry import logs

    logs.configure(json_lines=loaded.settings.core.log_format == "json", debug=loaded.settings.core.debug)
    import structlog

    for warning in loaded.warnings:
        structlog.get_logger().warning("config.warned", why=warning)
    from secure_dagu import assembly

    await (assembly.run_coordinator if what == "coordinator" else assembly.run_worker)(loaded)
    return 0
