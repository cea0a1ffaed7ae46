"""Whatever fits the OpenAPI document, and what does not: no server error, and answers as they are described."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from secure_dagu.web.api.document import openapi
from tests.web.api.conftest import HELLO
from tests.web.api.installation import Installation

_NO_END = "/events/stream"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Serve an installation on a thread of its own: schemathesis is not asynchronous."""
    # A traceback with all locals takes structlog's default renderer a minute.
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    ready, stop = threading.Event(), threading.Event()
    made: list[Installation] = []

    async def serve(home: Path) -> None:
        installation = Installation(home)
        (installation.dags / "hello.yaml").write_text(HELLO)
        async with installation.serving():
            made.append(installation)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve(tmp_path_factory.mktemp("home") / "home")))
    thread.start()
    assert ready.wait(30)
    yield made[0]
    structlog.reset_defaults()
    stop.set()
    thread.join(60)


def test_no_request_breaks_the_server(site: Installation) -> None:
    schema = schemathesis.openapi.from_dict(openapi("/api/v1"))
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) > 70
    for operation in operations:
        if operation.path != _NO_END:
            _try(operation, site.url)


def _try(operation: APIOperation[Any, Any, Any, Any], url: str) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=3, deadline=None, phases=[Phase.generate], derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def answers_as_described(case: schemathesis.Case[Any]) -> None:
        headers = {"Authorization": "Bearer admin", "Connection": "close"}
        case.validate_response(case.call(base_url=url, headers=headers, timeout=20), checks=CHECKS)

    answers_as_described()
