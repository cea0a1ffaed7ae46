"""Decide what follows one execution of a step: done, again after a pause, or once more in a loop. Pure.

Workflow language, sections 3.8 (continue_on), 3.9 (retry) and 3.10 (repeat).
"""

from __future__ import annotations

from msgspec import Struct

from secure_dagu.dag.model import ContinueOn

LONGEST_PAUSE_S = 365 * 86400.0
"""Where a pause that grows without a cap ends: a timer takes no infinity."""


class Policy(Struct, frozen=True, kw_only=True):
    """Retry or repeat of a step with its references resolved. `limit` 0: no retry, no bound on repeats."""

    limit: int = 0
    interval_s: float = 0.0
    backoff: float = 0.0
    """Factor from one pause to the next; 0 or 1: constant."""
    max_interval_s: float = 0.0
    """0: no cap."""
    exit_codes: tuple[int, ...] = ()

    def pause_s(self, n: int) -> float:
        """Return the pause before the `n`-th repetition, counted from 0."""
        if not self.interval_s:
            return 0.0
        try:
            pause = self.interval_s * self.backoff**n if self.backoff > 1.0 else self.interval_s
        except OverflowError:
            pause = LONGEST_PAUSE_S
        return min(pause, self.max_interval_s or LONGEST_PAUSE_S, LONGEST_PAUSE_S)


def retries(policy: Policy | None, *, done: int, exit_code: int | None) -> bool:
    """Tell whether a failed execution is tried again after `done` retries."""
    if policy is None or done >= policy.limit:
        return False
    return not policy.exit_codes or exit_code in policy.exit_codes


def repeats(mode: str, policy: Policy, *, executions: int, met: bool) -> bool:
    """Tell whether a step is executed once more.

    Args:
        mode: `while` (again if `met`) or `until` (again unless `met`).
        executions: how often it was executed so far.
        met: the policy's test after the last execution.
    """
    if policy.limit and executions >= policy.limit:
        return False
    return met if mode == "while" else not met


def accepts(policy: ContinueOn, *, exit_code: int | None, output_matches: bool) -> bool:
    """Tell whether dependents may run although the step failed."""
    return policy.failure or (exit_code is not None and exit_code in policy.exit_codes) or output_matches
