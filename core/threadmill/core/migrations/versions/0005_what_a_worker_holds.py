"""The index of what a worker holds answers that question only.

Its condition was that of the index of what is running on a thread. Where statistics were taken while all was
quiet, the planner took it for the smaller one, and a claim read all that was running anywhere.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _make_anew("status = 'running' and worker_id is not null")


def downgrade() -> None:
    _make_anew("status = 'running'")


def _make_anew(condition: str) -> None:
    op.drop_index("runs_worker_idx", table_name="runs", schema="threadmill")
    op.create_index(
        "runs_worker_idx", "runs", ["worker_id"], schema="threadmill", postgresql_where=sa.text(condition)
    )
