"""What is told of a run while it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("stream_mode", postgresql.ARRAY(sa.Text())), schema="threadmill")
    op.add_column(
        "runs",
        sa.Column("stream_subgraphs", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="threadmill",
    )


def downgrade() -> None:
    op.drop_column("runs", "stream_subgraphs", schema="threadmill")
    op.drop_column("runs", "stream_mode", schema="threadmill")
