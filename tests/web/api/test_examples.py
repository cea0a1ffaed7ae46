"""The curl examples of the reference page work as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.web.api.installation import Installation

PAGE = Path(__file__).parents[3] / "docs/reference/rest-api.md"
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_every_example_of_the_reference_works(site: Installation) -> None:
    assert len(EXAMPLES) == 4
    outputs = []
    for example in EXAMPLES:
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", example, env={**os.environ, "API": site.url, "KEY": "admin"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, problem = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, f"{example}\n{problem.decode()}"
        outputs.append(out.decode())
    assert '"content":"hello you\\n"' in outputs[0]
    assert outputs[1] == '{"dagRuns":[]}'
    assert outputs[2] == '{"errors":[]}'
    assert "event: control" in outputs[3]
    assert '"topic":"dagrun:hello/doc1"' in outputs[3]
