"""What a dry run of a build DAG says, without locks and without doing anything (workflow language, section 5.6)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.build_preview import preview
from secure_dagu.runner.build_store import Store
from tests.runner.building import CHAIN, ONE, Site, told


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    (made.src / "sub").mkdir()
    return made


def previewed(site: Site, text: str, **changes: object) -> dict[str, str]:
    """Return decision and reason of each step."""
    before = sorted(path for path in site.base.rglob("*") if "run" not in path.parts[len(site.base.parts)])
    found = preview(site.request(text, changes), load_definition(text, name="demo"))
    assert before == sorted(path for path in site.base.rglob("*") if "run" not in path.parts[len(site.base.parts)])
    return {name: f"{shown['decision']} ({shown['reason']})" for name, shown in found.items()}


async def test_a_preview_says_what_a_run_then_does(site: Site) -> None:
    assert previewed(site, CHAIN) == {
        "first": "execute (manifest_missing)",
        "last": "deferred (upstream_would_execute)",
        "read": "always (ineligible)",
    }
    await site.run(CHAIN)
    expected = {"first": "reuse (matched)", "last": "reuse (matched)", "read": "always (ineligible)"}
    assert previewed(site, CHAIN) == expected
    seen = await site.run(CHAIN)
    assert {name: told(seen, name) for name in expected} == expected


@pytest.mark.parametrize(
    "head",
    [
        "params: [{LEVEL: '3'}]",
        "env: [{A: '1'}, {B: $A}, {W: '${context.paths.work_dir}'}]",
        "shell: bash",
        "working_dir: .",
        "dotenv: [more.env]",
    ],
)
async def test_a_preview_knows_the_recipe_of_a_run(site: Site, head: str) -> None:
    (site.src / "more.env").write_text("M=1")
    text = head + ONE.replace("    run:", "    env: [{E: '$PWD ${outputs.out}'}]\n    run:")
    await site.run(text)
    assert previewed(site, text) == {"make": "reuse (matched)"}


async def test_a_preview_names_the_run_that_made_the_file(site: Site) -> None:
    seen = await site.run()
    shown = preview(site.request(), load_definition(ONE, name="demo"))["make"]
    ran = seen.details()["make"]["build"]
    assert shown == {**ran, "decision": "reuse", "reason": "matched", "phase": "preview"}


def test_without_reuse_everything_would_be_executed(site: Site) -> None:
    assert previewed(site, CHAIN, no_reuse=True) == {
        "first": "execute (reuse_disabled)",
        "last": "execute (reuse_disabled)",
        "read": "always (ineligible)",
    }


def test_a_missing_source_is_told(site: Site) -> None:
    (site.src / "in.txt").unlink()
    assert previewed(site, ONE) == {"make": "none (input_missing)"}


def test_a_source_that_cannot_be_read_is_told(site: Site) -> None:
    (site.src / "in.txt").unlink()
    os.mkfifo(site.src / "in.txt")
    assert previewed(site, ONE) == {"make": "none (evaluation_failed)"}


def test_secrets_are_neither_read_nor_needed(site: Site) -> None:
    text = "secrets: [{name: S, provider: file, key: nowhere}]" + ONE
    assert previewed(site, text) == {"make": "always (ineligible)"}


async def test_a_preview_waits_for_nobody(site: Site) -> None:
    await site.run()
    store = Store(site.store)
    handle = await store.lock(str(site.made), exclusive=True, stop=asyncio.Event())
    assert previewed(site, ONE) == {"make": "reuse (matched)"}
    os.close(handle)


def test_two_producers_are_an_error(site: Site) -> None:
    text = CHAIN.replace("path: c.txt", "path: ./b.txt")
    with pytest.raises(DefinitionError, match="multiple producers"):
        previewed(site, text)
