"""A process whose certificate or revocation list is of no use any more says that it is not ready, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from secure_dagu.assembly.health import certificate_objections
from secure_dagu.link import context, crl
from secure_dagu.link.context import UnsafePlaintext
from tests.link.certs import Ca

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def test_a_certificate_that_has_ended_or_not_begun_is_not_ready(tmp_path: Path) -> None:
    ca = Ca(tmp_path)
    pair = ca.coordinator()
    policy = context.server_policy(cert=pair.cert, key=pair.key, client_ca=ca.file)
    assert certificate_objections(policy, NOW) == []
    [ended] = certificate_objections(policy, NOW + 2 * DAY)
    assert "expired" in ended.what
    assert "pki issue" in ended.fix
    [early] = certificate_objections(policy, NOW - 2 * DAY)
    assert "not yet valid" in early.what
    assert certificate_objections(UnsafePlaintext(), NOW) == []


def test_a_revocation_list_past_its_grace_is_not_ready(tmp_path: Path) -> None:
    ca = Ca(tmp_path)
    pair = ca.coordinator()
    found = context.server_material(cert=pair.cert, key=pair.key, client_ca=ca.file)
    lists = crl.read(ca.crl(ends=timedelta(hours=1)), found.trusted)
    policy = context.server_from(found, lists=lists, grace=timedelta(hours=1))
    assert certificate_objections(policy, NOW + timedelta(minutes=90)) == []
    [closed] = certificate_objections(policy, NOW + timedelta(hours=3))
    assert "crl --renew" in closed.fix
