"""What is running, and what a bell was rung for, is found from the first on that was so a moment ago.

The index entries of all that has run since cannot be removed beside a transaction that is held open, and are
read where what is running is counted or compared. The conditions of the two indexes that are counted by are
in words that no other index has, as the planner took such others for them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("runs_worker_idx", "runs_rung_idx"):
        op.drop_index(name, table_name="runs", schema="threadmill")
    _create("runs_worker_idx", ["worker_id", "dispatched_at"], "status = 'running' and worker_id is not null")
    for name, status in (("runs_rung_idx", "pending"), ("runs_running_idx", "running")):
        _create(name, ["tenant", "dispatched_at"], f"'' || status = '{status}' and dispatched_at is not null")


def downgrade() -> None:
    for name in ("runs_running_idx", "runs_rung_idx", "runs_worker_idx"):
        op.drop_index(name, table_name="runs", schema="threadmill")
    _create("runs_rung_idx", ["tenant", "dispatched_at"], "status = 'pending' and dispatched_at is not null")
    _create("runs_worker_idx", ["worker_id"], "status = 'running' and worker_id is not null")


def _create(name: str, columns: list[str], condition: str) -> None:
    op.create_index(name, "runs", columns, schema="threadmill", postgresql_where=sa.text(condition))
