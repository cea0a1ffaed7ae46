"""The controls of a compliance report, decided on values: each fails for its own reason and for no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import asdict, replace

from secure_dagu.security.compliance import MAX_NAMED, REFERENCES, Api, Certificate, Control, Facts, judge

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
OURS = Certificate(name="peer.cert_file (server)", not_before=NOW - DAY, not_after=NOW + DAY)
API = Api(host="0.0.0.0", is_local=False, is_https=True, login="builtin")
GOOD = Facts(
    is_plaintext=False, minimum_tls="1.3", certificates=(OURS,), audit_problem="", secrets_in_env=(), looked_at=4,
    open_paths=(), api=API,
)  # fmt: skip


def failing(facts: Facts, now: datetime = NOW) -> dict[Control, str]:
    return {result.control: result.why for result in judge(facts, now) if not result.passed}


def test_every_control_passes_where_nothing_is_weakened() -> None:
    found = judge(GOOD, NOW)
    assert [result.control for result in found] == list(Control)
    assert all(result.passed and result.looked_at and result.why and not result.fix for result in found)


@pytest.mark.parametrize(
    ("facts", "control", "why"),
    [
        (replace(GOOD, certificates=(replace(OURS, not_after=NOW),)), Control.CERT_VALIDITY, "has ended"),
        (replace(GOOD, certificates=(OURS, replace(OURS, not_before=NOW + DAY))), Control.CERT_VALIDITY, "not yet"),
        (replace(GOOD, audit_problem="the audit log cannot be written"), Control.AUDIT_ENABLED, "cannot be written"),
        (replace(GOOD, api=replace(API, login="none")), Control.AUTH_ENABLED, "an admin"),
        (replace(GOOD, api=replace(API, is_https=False)), Control.API_TLS, "can be read"),
        (replace(GOOD, secrets_in_env=("DAGU_X",)), Control.SECRETS_NOT_IN_ENV, "DAGU_X"),
        (replace(GOOD, open_paths=("/a (mode 0644)",)), Control.FS_PERMISSIONS, "/a (mode 0644)"),
    ],
)
def test_each_control_fails_alone_with_what_to_do(facts: Facts, control: Control, why: str) -> None:
    assert failing(facts).keys() == {control}
    assert why in failing(facts)[control]
    assert all(result.fix for result in judge(facts, NOW) if not result.passed)


def test_plaintext_fails_both_who_is_proven_and_what_is_spoken() -> None:
    assert failing(replace(GOOD, is_plaintext=True)).keys() == {Control.PEER_MTLS, Control.TLS_MIN_12}


def test_tls_1_2_passes_and_is_named() -> None:
    found = {result.control: result for result in judge(replace(GOOD, minimum_tls="1.2"), NOW)}
    assert found[Control.TLS_MIN_12].passed
    assert "1.2" in found[Control.TLS_MIN_12].why


def test_http_passes_only_where_it_stays_on_this_host() -> None:
    assert not failing(replace(GOOD, api=replace(API, is_https=False, is_local=True, host="127.0.0.1")))


def test_one_login_for_all_passes_and_is_said() -> None:
    found = {result.control: result for result in judge(replace(GOOD, api=replace(API, login="basic")), NOW)}
    assert found[Control.AUTH_ENABLED].passed
    assert "one account" in found[Control.AUTH_ENABLED].why


def test_what_a_process_does_not_have_is_not_judged() -> None:
    assert {result.control for result in judge(replace(GOOD, api=None), NOW)} == set(Control) - {
        Control.AUTH_ENABLED, Control.API_TLS,
    }  # fmt: skip


def test_without_a_certificate_it_says_so() -> None:
    found = {result.control: result for result in judge(replace(GOOD, certificates=()), NOW)}
    assert found[Control.CERT_VALIDITY].passed
    assert "no certificate" in found[Control.CERT_VALIDITY].looked_at


def test_a_result_names_a_bounded_number_of_things() -> None:
    why = failing(replace(GOOD, open_paths=[f"/{number}" for number in range(1000)]))[Control.FS_PERMISSIONS]
    assert why.endswith(f"/{MAX_NAMED - 1} and {1000 - MAX_NAMED} more")


def test_every_control_is_evidence_for_a_requirement_of_every_framework() -> None:
    assert set(REFERENCES) == set(Control)
    assert all(all(asdict(references).values()) for references in REFERENCES.values())
