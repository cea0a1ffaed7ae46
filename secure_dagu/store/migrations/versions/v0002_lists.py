"""Indexes for lists of runs, newest first."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make them."""
    op.create_index("ix_attempts_created", "attempts", ["created_at"])
    op.create_index("ix_attempts_status_created", "attempts", ["status", "created_at"])
    op.create_index("ix_runs_latest", "runs", ["latest"])
