"""The pages of compliance and of run events: what they say, who may see them, and that looking is recorded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx
import pytest
from msgspec.structs import replace

from secure_dagu.audit.chain import Place
from secure_dagu.audit.events import Action
from secure_dagu.run.model import RunStatus
from secure_dagu.security.compliance import Control, Result
from secure_dagu.security.exceptions import Exemption, Kind
from secure_dagu.web.api.run_events import EventLog
from secure_dagu.web.pages.evidence import EVIDENCE
from secure_dagu.web.pages.frame import MENU
from secure_dagu.web.pages.run_event_list import event_filters_of
from secure_dagu.web.people import Role
from tests.web.site import PASSWORD, Site

NOW = datetime.now(UTC)
HOSTILE = '<img src=x onerror=alert(1)>"'


@pytest.fixture
async def ada(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        await site.login(client)
        yield client


def judged(*, fails: bool) -> tuple[Result, ...]:
    """Return a result of every control; the last one fails if it is to."""
    *well, last = Control
    results = [Result(control=one, passed=True, looked_at="x=1", why=f"{one} holds") for one in well]
    return (*results, Result(control=last, passed=not fails, looked_at="y=2", why="it", fix="chmod 600 it"))


async def test_the_compliance_page_says_how_every_control_stands_with_fix_evidence_and_exceptions(
    site: Site, ada: httpx.AsyncClient
) -> None:
    open_one = Exemption(
        id="e1", kind=Kind.PLAINTEXT, owner=HOSTILE, reason="moving over", granted_at=NOW, by="os:root",
        until=NOW + timedelta(days=3),
    )  # fmt: skip
    site.installation.evidence = replace(
        site.installation.evidence,
        results=judged(fails=True),
        exemptions=(open_one,),
        head=Place(seq=7, hash="ab" * 32),
    )
    page = (await ada.get("/compliance")).text
    assert re.findall(r'<tr id="control-(\w+)">', page) == list(Control)
    assert f"1 of {len(Control)} controls fail" in page
    assert "chmod 600 it" in page
    assert "ISO/IEC 27001" in page
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)
    assert "ab" * 32 in page
    [download] = re.findall(r'href="([^"]+)" download="compliance.json"', page)
    assert (await ada.get(download)).json()["passed"] is False
    site.installation.evidence = replace(site.installation.evidence, results=judged(fails=False), exemptions=())
    page = (await ada.get("/compliance")).text
    assert f"All {len(Control)} controls pass" in page
    assert "nothing of this installation is weaker" in page


async def test_every_link_to_evidence_leads_to_a_page(ada: httpx.AsyncClient) -> None:
    assert set(EVIDENCE) <= set(Control)
    for path in set(EVIDENCE.values()):
        assert (await ada.get(path)).status_code == 200, path


async def test_every_entry_of_the_menu_is_a_page_that_its_role_may_see_and_one_below_may_not(site: Site) -> None:
    for role in Role:
        await site.accounts.create(role.value, PASSWORD, role)
    for role in Role:
        async with site.client() as client:
            await site.login(client, role.value)
            person = await site.accounts.log_in(role.value, PASSWORD, address="x")
            front = (await client.get("/")).text
            for path, words, _, need in (entry for _, entries in MENU for entry in entries):
                may = person[1].may(need)
                assert (await client.get(path)).status_code == (200 if may else 403), f"{role} {path}"
                assert (f'href="{path}"' in front) == may, f"{role} {words}"


async def test_looking_at_the_report_is_recorded(site: Site, ada: httpx.AsyncClient) -> None:
    site.trail.events.clear()
    await ada.get("/compliance")
    assert [(event.action, event.target) for event in site.trail.events] == [(Action.AUDIT_READ, "report:compliance")]


async def test_events_are_listed_filtered_and_lead_to_their_runs(site: Site, ada: httpx.AsyncClient) -> None:
    log = EventLog(site.installation.home / "logs" / "admin" / "events", retention_days=1, now=lambda: NOW)
    for run_id, dag in (("r1", "etl"), ("r2", "report")):
        for status in (RunStatus.RUNNING, RunStatus.FAILED):
            at = NOW.isoformat()
            log.take({"name": dag, "dagRunId": run_id, "attemptId": "a", "status": int(status), "startedAt": at})

    async def rows(query: str) -> list[tuple[str, str]]:
        text = (await ada.get(f"/event-logs?{query}")).text
        return re.findall(r'<code>(dag\.run\.\w+)</code>.*?href="/dag-runs/([\w/]+)"', text)

    assert await rows("") == [
        ("dag.run.failed", "report/r2"), ("dag.run.running", "report/r2"),
        ("dag.run.failed", "etl/r1"), ("dag.run.running", "etl/r1"),
    ]  # fmt: skip
    assert await rows("dag=etl&status=failed") == [("dag.run.failed", "etl/r1")]
    assert await rows("run=r2&span=1h&status=nonsense") == [
        ("dag.run.failed", "report/r2"), ("dag.run.running", "report/r2"),
    ]  # fmt: skip
    assert await rows("page=2") == []


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "999999999", "²"])
def test_a_page_that_is_none_is_the_first(page: str) -> None:
    assert event_filters_of({"page": page}).page == 1
