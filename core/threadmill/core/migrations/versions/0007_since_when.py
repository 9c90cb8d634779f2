"""What is running is found from the first on that was running a moment ago.

The index entries of all that has run since cannot be removed beside a transaction that is held open, and are
read where what is running is counted or compared.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _make_worker_index("worker_id", "dispatched_at")
    op.create_index(
        "runs_running_idx",
        "runs",
        ["tenant", "dispatched_at"],
        schema="threadmill",
        postgresql_where=sa.text("status || '' = 'running' and dispatched_at is not null"),
    )


def downgrade() -> None:
    op.drop_index("runs_running_idx", table_name="runs", schema="threadmill")
    _make_worker_index("worker_id")


def _make_worker_index(*columns: str) -> None:
    op.drop_index("runs_worker_idx", table_name="runs", schema="threadmill")
    op.create_index(
        "runs_worker_idx",
        "runs",
        columns,
        schema="threadmill",
        postgresql_where=sa.text("status = 'running' and worker_id is not null"),
    )
