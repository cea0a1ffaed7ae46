"""Labels in a certificate: one strict form, and nothing that could pass for another label."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dispatch import match
from secure_dagu.errors import InvalidRequest
from secure_dagu.security import grants
from secure_dagu.security.grants import Grants, parse_grants

WORDS = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda text: text[0].isalnum() and text[-1].isalnum())
PAIRS = st.frozensets(st.tuples(WORDS, WORDS), min_size=1, max_size=20)


@given(PAIRS)
def test_what_is_encoded_is_decoded_and_every_claim_in_it_is_granted(pairs: frozenset[tuple[str, str]]) -> None:
    given_labels = Grants(pairs)
    found = grants.decode(grants.encode(given_labels))
    assert found == given_labels
    for key, value in pairs:
        assert not found.missing({key: value})
        assert found.missing({key: value + "x"}) == ((f"{key}={value}x",) if (key, value + "x") not in pairs else ())


@given(st.binary(max_size=300))
def test_any_bytes_are_labels_or_refused(data: bytes) -> None:
    try:
        found = grants.decode(data)
    except InvalidRequest:
        return
    assert grants.decode(grants.encode(found)) == found


def test_one_key_may_have_several_values_and_a_claim_takes_one() -> None:
    found = parse_grants(["zone=eu,zone=us", "gpu=true"])
    assert found.labels == {"gpu": frozenset({"true"}), "zone": frozenset({"eu", "us"})}
    assert found.missing({"zone": "us", "gpu": "true"}) == ()
    assert found.missing({"zone": "asia", "disk": "ssd"}) == ("disk=ssd", "zone=asia")
    assert match.label_set({"zone": "us"}) <= found.pairs
    assert str(found) == "gpu=true,zone=eu,zone=us"


def test_nothing_is_granted_without_the_extension() -> None:
    assert not grants.NOTHING
    assert grants.NOTHING.missing({}) == ()
    assert grants.NOTHING.missing({"gpu": "true"}) == ("gpu=true",)


@pytest.mark.parametrize(
    "text",
    ["gpu", "=true", "gpu=", "g pu=1", "gpu=a\nb=c", "gpu=a\x1b[0m", " =1", "a/b/c=1", "/a=1", "ä=1", "gpu= x",
     "a=b,a=b", "x" * 128 + "=1", "a=" + "x" * 129, "A/b=1"],
)  # fmt: skip
def test_a_malformed_label_is_not_issued(text: str) -> None:
    if text == "gpu= x":  # blanks around a word on the command line are the shell's; inside a value they stay
        assert parse_grants(["gpu=x "]).values("gpu") == {"x"}
    with pytest.raises(InvalidRequest):
        parse_grants([text])


@pytest.mark.parametrize("key", ["secure-dagu/admin", "secure-dagu/Tenant", "secure-dagu/tenant2"])
def test_a_security_label_that_means_nothing_is_not_issued(key: str) -> None:
    with pytest.raises(InvalidRequest, match="reserved"):
        parse_grants([f"{key}=x"])


def test_the_tenant_is_a_security_label() -> None:
    found = parse_grants(["secure-dagu/tenant=payments,gpu=true"])
    assert found.security_labels == {("secure-dagu/tenant", "payments")}
    assert grants.is_reserved("Secure-Dagu/tenant")
    assert not grants.is_reserved("secure-dagu-tenant")


def test_labels_are_bounded() -> None:
    parse_grants([f"k{number}=v" for number in range(grants.MAX_PAIRS)])
    with pytest.raises(InvalidRequest, match="too many"):
        parse_grants([f"k{number}=v" for number in range(grants.MAX_PAIRS + 1)])
    with pytest.raises(InvalidRequest, match="too many"):
        parse_grants([f"k{number}={'v' * 128}" for number in range(grants.MAX_PAIRS)])


@pytest.mark.parametrize(
    "value",
    [b"", b"\x0c\x00", b"\x0c\x05gpu=1x", b"\x0c\x05gpu=", b"\x04\x05gpu=1", b"\x0c\x81\x05gpu=1", b"\x0c\x80gpu=1",
     b"\x0c\x06gpu=1\n", b"\x0c\x0bgpu=1\ngpu=1", b"\x0c\x05gpu=\xff", b"\x0c\x04gpu1", b"\x0c\x05gpu=1\x00"],
)  # fmt: skip
def test_a_value_that_no_ca_of_ours_writes_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        grants.decode(value)


def test_every_part_of_the_oid_fits_peers_that_count_in_31_bits() -> None:
    assert x509.ObjectIdentifier(grants.OID).dotted_string == grants.OID
    assert max(int(part) for part in grants.OID.split(".")) < 1 << 31
