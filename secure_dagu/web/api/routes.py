"""All endpoints of the REST API in one router."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from secure_dagu.web.api import accounts, dag_runs, dags, events, machines, search, secrets, system
from secure_dagu.web.api.deps import ERRORS
from secure_dagu.web.api.queries import only_here


def api_router() -> APIRouter:
    """Return every endpoint; the app mounts it at the path of the API and keeps `Parts` as `app.state.api`."""
    router = APIRouter(responses=ERRORS, dependencies=[Depends(only_here)])
    # search before dags: /dags/search is no DAG
    for module in (system, accounts, secrets, search, dags, dag_runs, machines, events):
        router.include_router(module.router)
    return router
