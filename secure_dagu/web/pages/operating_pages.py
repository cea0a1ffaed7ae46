"""The pages of operating in one place: runs, queues, machines, records, accounts and secrets."""

from __future__ import annotations

from fastapi import APIRouter

from secure_dagu.web.pages import accounts, evidence, machines, queues, records, run_event_list, runs, secrets


def operating_routers() -> tuple[APIRouter, ...]:
    """Return the routers of these pages."""
    return tuple(
        module.router for module in (runs, queues, machines, records, evidence, run_event_list, accounts, secrets)
    )
