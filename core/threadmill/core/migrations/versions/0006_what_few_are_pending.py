"""A tenant that has few pending runs is not counted by each of its enqueues.

It was, as counting few is cheap. Beside a transaction that is held open it is not: the index entries of all
that has run since cannot be removed, and are read to find the few.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BEFORE = """
    if pending + adding <= allowed then
        return array[pending, null];
    end if;
    if fleet_wide then"""
# Runs that come back, replayed or rescued, are not among the younger ones. Beside many they are few, but not
# beside few: these are relied upon only where the bound leaves room for all that may come back meanwhile.
AFTER = """
    if pending + adding <= (case when known < 100 then allowed - 10000 else allowed end) then
        return array[pending, null];
    end if;
    if fleet_wide then"""


def upgrade() -> None:
    _rewrite(BEFORE, AFTER)


def downgrade() -> None:
    _rewrite(AFTER, BEFORE)


def _rewrite(before: str, after: str) -> None:
    op.execute(f"""
        do $rewrite$
        begin
            execute replace(
                pg_get_functiondef('threadmill.admit'::regproc), $text${before}$text$, $text${after}$text$
            );
        end
        $rewrite$
    """)
