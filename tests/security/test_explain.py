"""What `policy explain` says is what the wall does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from secure_dagu.dispatch.model import Role
from secure_dagu.security.admission import Allow, DenyReason, admit
from secure_dagu.security.explain import MEANINGS, Objects, a_peer_of, explain, method_of
from secure_dagu.security.grants import TENANT, Grants
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.policy import Mode, Policy
from secure_dagu.security.revocation import deny
from secure_dagu.security.roles import RPC_RULES, ObjectRule

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SOON = NOW + timedelta(days=1)


def a_peer(role: Role = Role.WORKER, **granted: str) -> Peer:
    return Peer(
        connection="", address="", identity=Identity("x", role, "gpu-1"), not_after=SOON,
        grants=Grants(frozenset(granted.items())),
    )  # fmt: skip


@pytest.mark.parametrize("role", list(Role))
def test_every_cell_is_explained_as_it_is_decided(role: Role) -> None:
    peer = a_peer_of(role, SOON)
    for method, rule in RPC_RULES.items():
        told = explain(peer, method, NOW)
        decided = admit(peer, method, None, NOW)
        assert told.is_allowed == isinstance(decided, Allow), method
        assert (told.rule, told.reason) == (("roles", "") if told.is_allowed else ("roles", "role_not_allowed"))
        if told.is_allowed and role is Role.WORKER:
            assert told.needs == ("" if rule.object_rule is ObjectRule.NONE else MEANINGS[rule.object_rule])


def test_a_method_may_be_given_by_its_last_word_and_a_misspelt_one_is_denied_with_a_hint() -> None:
    assert method_of("Dispatch") == "/coordinator.v1.CoordinatorService/Dispatch"
    assert method_of("coordinator.v1.CoordinatorService/Poll") == "/coordinator.v1.CoordinatorService/Poll"
    assert method_of("Check") == method_of("/grpc.health.v1.Health/Check") == "/grpc.health.v1.Health/Check"
    told = explain(a_peer(Role.ADMIN), "Dispach", NOW)
    assert (told.is_allowed, told.rule) == (False, "table")
    assert "did you mean Dispatch?" in told.lines[0].text


def test_the_rule_that_denies_is_named() -> None:
    revoked = deny(a_peer(), DenyReason.CERT_REVOKED)
    cases = [
        (explain(a_peer(), "Poll", SOON), "certificate", "cert_expired"),
        (explain(a_peer(), "Poll", NOW, objects=Objects(worker="gpu-2")), "own-id", "worker_id_mismatch"),
        (explain(a_peer(), "GetWorkers", NOW), "roles", "role_not_allowed"),
        (explain(a_peer(), "Poll", NOW, objects=Objects(labels={"gpu": "true"})), "labels", "label_not_granted"),
        (
            explain(a_peer(Role.DISPATCHER), "Dispatch", NOW, objects=Objects(labels={TENANT: "pay"})),
            "tenant",
            "other_tenant",
        ),
        (
            explain(a_peer(), "Poll", NOW, standing=revoked),
            "certificate",
            "cert_revoked",
        ),
    ]
    for told, rule, reason in cases:
        assert (told.is_allowed, told.rule, told.reason) == (False, rule, reason)
        assert told.fix
        assert told.lines[-1].is_met is False


def test_dry_run_is_explained_as_let_through() -> None:
    told = explain(
        a_peer(), "Heartbeat", NOW, objects=Objects(worker="gpu-1@7", labels={"gpu": "true"}),
        policy=Policy(mode=Mode.DRY_RUN),
    )  # fmt: skip
    assert told.is_allowed
    assert "dry-run" in told.lines[-1].text
    assert told.needs == ""


def test_granted_labels_and_tenants_are_shown() -> None:
    told = explain(a_peer(gpu="true"), "Poll", NOW, objects=Objects(labels={"gpu": "true"}))
    assert told.is_allowed
    assert "gpu=true" in told.lines[-1].text
    peer = Peer(
        connection="", address="", identity=Identity("x", Role.DISPATCHER, "d"), not_after=SOON,
        grants=Grants(frozenset({(TENANT, "pay")})),
    )  # fmt: skip
    assert explain(peer, "Dispatch", NOW, objects=Objects(labels={TENANT: "pay"})).is_allowed
