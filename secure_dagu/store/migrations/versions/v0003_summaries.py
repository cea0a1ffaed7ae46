"""What lists show of a run stands in `runs`: when it was made, its status and a short document."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from secure_dagu.dispatch.operating import in_lists
from secure_dagu.store.narrowing import label_lines

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns, fill them from the attempts, index them."""
    op.drop_index("ix_attempts_created", "attempts")
    op.drop_index("ix_attempts_status_created", "attempts")
    op.add_column("runs", sa.Column("made_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("status", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("labels", sa.Text(), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("summary", sa.Text(), nullable=False, server_default=""))
    connection = op.get_bind()
    connection.execute(
        sa.text("UPDATE runs SET made_at = (SELECT min(created_at) FROM attempts WHERE attempts.run = runs.id)")
    )
    last = 0
    while rows := connection.execute(
        sa.text(
            "SELECT runs.id, attempts.status, attempts.labels, attempts.document FROM runs "
            "JOIN attempts ON attempts.key = runs.latest WHERE runs.id > :last ORDER BY runs.id LIMIT 500"
        ),
        {"last": last},
    ).all():
        values = [
            {"id": row[0], "status": row[1], "labels": label_lines(json.loads(row[2])), "summary": _summary(row[3])}
            for row in rows
        ]
        connection.execute(
            sa.text("UPDATE runs SET status = :status, labels = :labels, summary = :summary WHERE id = :id"), values
        )
        last = rows[-1][0]
    op.create_index("ix_runs_made", "runs", ["is_root", "made_at", "status", "dag", "run_id"])
    op.create_index("ix_runs_made_of_dag", "runs", ["is_root", "dag", "made_at"])
    op.create_index("ix_runs_made_of_status", "runs", ["is_root", "status", "made_at"])


def _summary(document: str) -> str:
    try:
        found = json.loads(document)
    except ValueError:
        return ""
    return json.dumps(in_lists(found), ensure_ascii=False) if isinstance(found, dict) else ""
