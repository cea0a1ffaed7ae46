"""Identity by rule: exactly one rule, in one way, or nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import InvalidRequest
from secure_dagu.security.grants import Grants, parse_grants
from secure_dagu.security.identity import NAME
from secure_dagu.security.mapping import MAPPED_DOMAIN, Presented, holder_of, parse_rules

RULES = parse_rules(
    [
        {"uri": "spiffe://corp.example/ns/dagu/sa/{name}", "role": "worker"},
        {"dns": "{name}.{zone}.workers.corp.example", "role": "worker", "labels": {"zone": "{zone}", "gpu": "true"}},
        {"subject": "CN={name},OU=dispatchers,O=Corp", "role": "dispatcher"},
        {"dns": "coordinator.corp.example", "role": "coordinator", "name": "main"},
        {"spiffe": "secure-dagu"},
    ]
)


@pytest.mark.parametrize(
    ("presented", "identity", "labels"),
    [
        (Presented(uris=("spiffe://corp.example/ns/dagu/sa/gpu-1",)), f"spiffe://{MAPPED_DOMAIN}/worker/gpu-1", ""),
        (Presented(dns=("GPU-1.eu.workers.corp.example.", "other.example")), "spiffe://mapped/worker/gpu-1",
         "gpu=true,zone=eu"),
        (Presented(subject="CN=cron,OU=dispatchers,O=Corp"), "spiffe://mapped/dispatcher/cron", ""),
        (Presented(dns=("coordinator.corp.example",), subject="CN=x"), "spiffe://mapped/coordinator/main", ""),
        (Presented(uris=("spiffe://secure-dagu/admin/anna",), grants=parse_grants(["a=b"])),
         "spiffe://secure-dagu/admin/anna", "a=b"),
    ],
)  # fmt: skip
def test_a_certificate_is_who_its_one_rule_says(presented: Presented, identity: str, labels: str) -> None:
    holder = holder_of(presented, RULES)
    assert (holder.identity.uri, str(holder.grants)) == (identity, labels)


@pytest.mark.parametrize(
    "presented",
    [
        Presented(),
        Presented(subject="CN=gpu-1"),
        Presented(uris=("spiffe://corp.example/ns/other/sa/gpu-1",)),
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/gpu-1/x",)),
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/a/../b",)),
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/",)),
        # two URI names are two identities, whichever of them a rule would take
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/a", "spiffe://corp.example/ns/dagu/sa/b")),
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/a", "https://elsewhere.example")),
        # one rule in two ways
        Presented(dns=("a.eu.workers.corp.example", "b.eu.workers.corp.example")),
        # two rules
        Presented(dns=("a.eu.workers.corp.example", "coordinator.corp.example")),
        Presented(uris=("spiffe://corp.example/ns/dagu/sa/a",), subject="CN=cron,OU=dispatchers,O=Corp"),
        # a placeholder is one part
        Presented(dns=("a.b.eu.workers.corp.example",)),
        Presented(dns=("xworkers.corp.example", "a.eu.workersxcorp.example")),
        Presented(dns=("*.eu.workers.corp.example",)),
        # a comma inside a common name is written escaped, and is no separator
        Presented(subject="CN=cron\\,OU=dispatchers\\,O=Corp"),
        Presented(subject="CN=cron,OU=dispatchers,O=Corp,DC=evil"),
        Presented(subject="CN=a+OU=dispatchers,O=Corp"),
        Presented(subject="cn=cron,OU=dispatchers,O=Corp"),
        # another trust domain, and a foreign certificate that writes one of ours
        Presented(uris=("spiffe://other/admin/anna",)),
        Presented(uris=(f"spiffe://{MAPPED_DOMAIN}/admin/anna",)),
    ],
)  # fmt: skip
def test_a_certificate_that_matches_no_rule_or_more_than_one_is_nobody(presented: Presented) -> None:
    with pytest.raises(InvalidRequest, match="names no identity"):
        holder_of(presented, RULES)


def test_labels_in_a_foreign_certificate_grant_nothing_unless_the_rule_says_so() -> None:
    presented = Presented(
        uris=("spiffe://corp.example/ns/dagu/sa/a",), grants=parse_grants(["secure-dagu/tenant=payments"])
    )
    assert holder_of(presented, RULES).grants == Grants()


@given(st.text(max_size=80))
def test_whatever_a_certificate_says_a_rule_makes_only_names_that_are_safe(text: str) -> None:
    for presented in (
        Presented(uris=(f"spiffe://corp.example/ns/dagu/sa/{text}",)),
        Presented(dns=(f"{text}.eu.workers.corp.example",)),
        Presented(subject=f"CN={text},OU=dispatchers,O=Corp"),
    ):
        try:
            holder = holder_of(presented, RULES)
        except InvalidRequest:
            continue
        assert NAME.fullmatch(holder.identity.name)
        assert holder.identity.role in (Role.WORKER, Role.DISPATCHER)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("x", "list"),
        (["x"], "no map"),
        ([{"role": "worker"}], "exactly one of"),
        ([{"uri": "a{name}", "dns": "b", "role": "worker"}], "exactly one of"),
        ([{"uri": "a{name}"}], "needs a role"),
        ([{"uri": "a{name}", "role": "anonymous"}], "needs a role"),
        ([{"uri": "a{name}", "role": "root"}], "needs a role"),
        ([{"uri": "a", "role": "worker"}], "is not in"),
        ([{"uri": "a{name}", "role": "worker", "nmae": "x"}], "unknown 'nmae'"),
        ([{"uri": "a{name", "role": "worker", "name": "x"}], "no pattern"),
        ([{"uri": "a{Name}", "role": "worker", "name": "x"}], "no pattern"),
        ([{"uri": "a{name}.{zone}", "role": "worker"}], "no pattern"),
        ([{"dns": "{name}{zone}.x", "role": "worker"}], "no pattern"),
        ([{"uri": "{name}/{name}", "role": "worker"}], "no pattern"),
        ([{"uri": "a", "role": "worker", "name": "../x"}], "cannot be a name"),
        ([{"uri": "a{name}", "role": "worker", "labels": {"zone": "{zone}"}}], "is not in"),
        ([{"uri": "a{name}", "role": "worker", "labels": {"a b": "c"}}], "is no label"),
        ([{"uri": "a{name}", "role": "worker", "labels": {"secure-dagu/x": "c"}}], "reserved"),
        ([{"uri": "a{name}", "role": "worker", "labels": "a=b"}], "map"),
        ([{"spiffe": "x", "role": "worker"}], "takes everything from"),
        ([{"spiffe": "x"}, {"spiffe": "x"}], "twice"),
        ([{"spiffe": f"d{n}"} for n in range(101)], "more than 100"),
        ([{"uri": "x" * 501, "role": "worker", "name": "n"}], "no text"),
        ([{"uri": 5, "role": "worker", "name": "n"}], "no text"),
    ],
)
def test_a_rule_that_could_not_mean_what_it_says_is_refused_with_the_reason(rules: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_rules(rules)


def test_a_pattern_is_text_and_no_expression() -> None:
    (rule,) = parse_rules([{"dns": "a.c", "role": "worker", "name": "x"}])
    with pytest.raises(InvalidRequest):
        holder_of(Presented(dns=("abc",)), [rule])
