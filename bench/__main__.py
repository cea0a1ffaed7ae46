"""Run measurements: `python -m bench [NAME …] [--json FILE]`. Each prints what it measured beside its target."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass

from secure_dagu.wire import process

process.prepare()

from bench import audit, failover, load, local, operate, queues, robust, rotation, runs, schedule, streams, web  # noqa: E402 - gRPC reads its settings at the first import


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    unit: str
    target: str
    is_met: bool | None


SCENARIOS: dict[str, Callable[[], Awaitable[list[tuple[str, float, str, str, bool | None]]]]] = {
    "one_step": runs.one_step,
    "throughput": runs.throughput,
    "chain": runs.chain,
    "memory": runs.memory,
    "history": runs.history,
    "local": local.local,
    "queue_rate": queues.queue_rate,
    "queue_history": queues.queue_history,
    "schedule": schedule.schedule,
    "cancel": robust.cancel,
    "outage": robust.outage,
    "failover": failover.failover,
    "kill_worker": robust.kill_worker,
    "drain": robust.drain,
    "rotation": rotation.rotation,
    "logs": streams.logs,
    "artifact": streams.artifact,
    "idle_workers": load.idle_workers,
    "leased": load.leased,
    "polls": load.polls,
    "audit": audit.audit,
    "sse": web.sse,
    "operate_lists": operate.operate_lists,
}


def main() -> int:
    """Run the chosen scenarios; exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    unknown = set(args.names) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    figures = list(measure(args.names or list(SCENARIOS)))
    if args.json:
        with open(args.json, "w") as file:
            json.dump([asdict(figure) for figure in figures], file, indent=2)
    return 1 if any(figure.is_met is False for figure in figures) else 0


def measure(names: list[str]) -> Iterator[Figure]:
    """Run scenarios one after another and print each figure as it comes."""
    import uvloop

    print(f"machine: {_machine()}", flush=True)
    for name in names:
        try:
            found = uvloop.run(_bounded(SCENARIOS[name]()))
        except Exception as error:  # one broken scenario must not hide the others
            print(f"{name:<14} failed: {error}", file=sys.stderr, flush=True)
            yield Figure(name, float("nan"), "", "", is_met=False)
            continue
        for what, value, unit, target, is_met in found:
            word = {True: "ok", False: "SHORT", None: ""}[is_met]
            print(f"{name:<14} {what:<52} {value:>10.2f} {unit:<8} {target:<12} {word}", flush=True)
            yield Figure(f"{name}: {what}", value, unit, target, is_met)


def _machine() -> str:
    """Say how fast this machine is just now: figures of two runs compare only where this is alike."""
    began = time.process_time()
    total = 0
    for number in range(2_000_000):
        total += number
    took = time.process_time() - began
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"one million additions in {took * 500:.0f} ms, load average {os.getloadavg()[0]:.1f}"
    )


async def _bounded(
    work: Awaitable[list[tuple[str, float, str, str, bool | None]]],
) -> list[tuple[str, float, str, str, bool | None]]:
    async with asyncio.timeout(300):
        return await work


if __name__ == "__main__":
    raise SystemExit(main())
