"""What the service commands share: load the configuration, set up logging, run until told to stop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secure_dagu.cli.flags import add_settings_flags

if TYPE_CHECKING:
    from secure_dagu.config.load import Loaded


def add_flags(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """Declare the flags of some settings sections."""
    add_settings_flags(parser, sections)


async def run(args: argparse.Namespace, what: str) -> int:
    """Run the service; returns 0 after an orderly stop."""
    from secure_dagu.config.load import load

    configure(loaded := load(args))
    if what == "coordinator":
        from secure_dagu.assembly.coordinator import run_coordinator as serve
    else:
        from secure_dagu.assembly.worker import run_worker as serve
    await serve(loaded)
    return 0


def configure(loaded: Loaded) -> None:
    """Shut the process against others, set up logging, and say what the configuration warns of."""
    from secure_dagu.security.shield import shield
    from secure_dagu.telemetry import logs

    shield()
    logs.configure(json_lines=loaded.settings.core.log_format == "json", debug=loaded.settings.core.debug)
    import structlog

    for warning in loaded.warnings:
        structlog.get_logger().warning("config.warned", why=warning)
