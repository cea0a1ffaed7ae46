"""Every interval and limit of a worker, each with its reason. Seconds and bytes; tests shorten them."""

from __future__ import annotations

import random

from msgspec import Struct


class Timings(Struct, frozen=True, kw_only=True):
    """How often a worker does what it repeats, and how long it waits."""

    heartbeat_s: float = 1.0
    """Presence and lease renewal: a coordinator declares a lease dead after 30 s (protocol, section 3.8)."""
    poll_pause_s: float = 0.5
    """Pause after an empty poll answer, so that a coordinator that answers nothing cannot make us spin (W8)."""
    silent_s: float = 0.9
    """With several coordinators: one that leaves a heartbeat unanswered for so long gets no slot for its polls."""
    poll_turn_s: float = 10.0
    """With several coordinators: how long one open poll may keep a slot from the others."""
    first_retry_s: float = 0.2
    outage_cap_s: float = 5.0
    """Longest back-off while a coordinator is merely away: it is found again soon after its restart."""
    error_cap_s: float = 60.0
    """Longest back-off after any other error."""
    hopeless_for_s: float = 10.0
    """How long a worker that had been accepted before bears refusals: files may be half-way through a renewal."""
    remind_s: float = 30.0
    """An unchanged trouble is logged again after this time, not before."""
    ack_for_s: float = 30.0
    """An offer lives this long (protocol, section 3.3)."""
    ack_retry_s: float = 0.1
    orphan_timeout_s: float = 180.0
    """Without one successful renewal for this long, a run is stopped and its undelivered output given up.

    The reference uses 30 s, which equals the lease. Ours is longer, because our coordinator grants every lease a fresh
    term after its own restart: a restart of up to three minutes must not end runs. What keeps a second attempt from
    being accepted meanwhile is the lease at the coordinator, not this clock.
    """
    report_first_s: float = 0.05
    report_every_s: float = 0.2
    report_bytes_per_s: float = 2_000_000.0
    """Active reports carry the whole document: the next one waits size / this rate, so bytes grow with time only."""
    retry_first_s: float = 0.1
    retry_cap_s: float = 2.0
    """Terminal reports and uploads: doubling from first to cap, plus or minus half (protocol, section 1.8)."""
    log_age_s: float = 0.15
    """Output younger than this waits for company before it is sent."""
    log_bytes: int = 32 * 1024
    """As much output is sent at once, whatever its age."""
    log_chunk_bytes: int = 128 * 1024
    """Largest log part. Far below the protocol's 3 MiB, because a hundred runs may each hold one in memory; measured:
    1 GB/s leaves this process all the same."""
    log_checkpoint_bytes: int = 64 * 2**20
    """After as much in one call, the call is closed to have it acknowledged."""
    log_streams_per_call: int = 64
    """After as many different streams in one call likewise: the coordinator holds a file open for each."""
    log_call_s: float = 10.0
    """So old a log call is closed, which acknowledges it: output that never rests must not hold a connection, and the
    certificate that it was opened with, for ever."""
    log_idle_s: float = 5.0
    """An idle log call is closed, which acknowledges it and survives proxies that cut idle streams."""
    stall_s: float = 30.0
    """An upload that moves nothing for this long is cut and tried again."""
    artifacts_for_s: float = 180.0
    """Whole time for the upload of artifacts (protocol, section 1.8)."""
    artifact_chunk_bytes: int = 2**20
    child_poll_s: float = 1.0
    child_misses: int = 10
    """Failed status questions in a row that end the wait for a child (protocol, section 1.8)."""
    child_cancel_s: float = 30.0
    drain_timeout_s: float = 300.0
    """How long a draining worker lets its runs finish before it stops them."""
    deliver_s: float = 20.0
    """How long a worker that stopped its runs while draining waits for their last reports to arrive."""


def full_jitter(failures: int, *, first_s: float, cap_s: float) -> float:
    """Return a pause after the `failures`-th failure in a row: uniform in [0, min(cap, first * 2^(failures-1))]."""
    return random.uniform(0.0, min(cap_s, first_s * 2.0 ** min(failures - 1, 30)))  # noqa: S311  jitter is no secret


def half_jitter(failures: int, *, first_s: float, cap_s: float) -> float:
    """Return the same exponential pause, plus or minus one half."""
    return random.uniform(0.5, 1.5) * min(cap_s, first_s * 2.0 ** min(failures - 1, 30))  # noqa: S311  as above
