"""Errors cross the wire in both directions without losing what they say."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    Refused,
    SecureDaguError,
    Unavailable,
    UnknownCall,
)
from secure_dagu.wire import status

ALL = sorted(status._BY_CODE.values(), key=lambda kind: kind.code)


@given(kind=st.sampled_from(ALL), what=st.text(max_size=150), why=st.text(max_size=150), fix=st.text(max_size=150))
def test_every_class_comes_back_as_itself(kind: type[SecureDaguError], what: str, why: str, fix: str) -> None:
    error = kind(what, why=why, fix=fix)
    back = status.error_of(status.code_of(error), status.details_of(error), status.metadata_of(error))
    assert type(back) is kind
    assert back.as_dict() == error.as_dict()


def test_the_details_begin_with_what_so_that_stock_peers_match_their_prefix() -> None:
    error = PreconditionFailed("stale attempt: lease no longer active", why="it ended", fix="stop")
    assert status.details_of(error) == "stale attempt: lease no longer active: it ended (stop)"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.UNIMPLEMENTED, UnknownCall),
        (grpc.StatusCode.ABORTED, Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, PreconditionFailed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitExceeded),
        (grpc.StatusCode.PERMISSION_DENIED, Refused),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Unavailable),
        (grpc.StatusCode.INTERNAL, SecureDaguError),
        (grpc.StatusCode.UNKNOWN, SecureDaguError),
    ],
)
def test_a_foreign_status_becomes_its_family(code: grpc.StatusCode, kind: type[SecureDaguError]) -> None:
    assert type(status.error_of(code, "text")) is kind


@given(st.binary(max_size=4000))
def test_junk_metadata_is_ignored(junk: bytes) -> None:
    error = status.error_of(grpc.StatusCode.ABORTED, "dag state: conflict", ((status.METADATA_KEY, junk),))
    assert type(error) is Conflict


def test_metadata_of_another_status_is_not_believed() -> None:
    """Or a peer could make us retry what is final, or give up what is not."""
    lie = status.metadata_of(Unavailable("try again"))
    assert type(status.error_of(grpc.StatusCode.PERMISSION_DENIED, "no", lie)) is Refused


def test_an_endless_error_is_cut_and_sent_without_metadata() -> None:
    error = Unavailable("x" * 10_000)
    assert len(status.details_of(error)) == status.MAX_DETAILS
    assert status.metadata_of(error) == ()
