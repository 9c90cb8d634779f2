"""What a replay of many dead letters would do, without doing it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from threadmill.cli.dead_letter_options import MOST_COUNTED, counted
from threadmill.cli.output import Cells, headline, listing, text
from threadmill.core.database import Database
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step
from threadmill.dlq import DeadLetter, Preview
from threadmill.dlq.preview import preview_of, standing

# What of a plan is shown letter by letter.
SHOWN = 20
# So many are looked at in one round trip.
BATCH = 200


class Planned(NamedTuple):
    """A dead letter, and what a replay would do about it."""

    letter: DeadLetter
    preview: Preview

    def to_dict(self) -> dict[str, Any]:
        """The plan for one as JSON values."""
        letter = self.letter
        return {
            "id": letter.id,
            "tenant": letter.tenant,
            "thread_id": letter.thread_id,
            "graph": letter.graph,
            **self.preview.to_dict(),
        }


def plan_replays(settings: Settings, letters: Iterable[DeadLetter], mode: str) -> list[Planned]:
    """What a replay would do about the first MOST_COUNTED of these."""
    database = Database(settings.located())
    try:
        return [
            planned
            for batch in _batches(islice(letters, MOST_COUNTED))
            for planned in database.carry_out(_look(batch, mode))
        ]
    finally:
        database.close()


def _batches(letters: Iterator[DeadLetter]) -> Iterator[list[DeadLetter]]:
    while batch := list(islice(letters, BATCH)):
        yield batch


def _look(letters: Sequence[DeadLetter], mode: str) -> Plan[list[Planned]]:
    found = yield Batch([Step(standing(), {"letter_id": uuid.UUID(letter.id)}) for letter in letters])
    # What was removed since it was listed has no row.
    return [
        Planned(letter, preview_of(rows[0], mode))
        for letter, rows in zip(letters, found, strict=True)
        if rows
    ]


def _outcomes(planned: Sequence[Planned]) -> list[tuple[str | None, str, int]]:
    """How many would go in which mode and why, the most first; the mode is None where it is refused."""
    counts = Counter(
        (None, preview.refusal) if preview.refusal else (preview.mode, preview.why) for _, preview in planned
    )
    return [(mode, why, number) for (mode, why), number in counts.most_common()]


def plan_document(planned: Sequence[Planned]) -> dict[str, Any]:
    """The plan as JSON values: how many in which mode and why, and the first of them."""
    return {
        "dry_run": True,
        "total": len(planned),
        "bounded": len(planned) >= MOST_COUNTED,
        "outcomes": [{"mode": mode, "why": why, "count": number} for mode, why, number in _outcomes(planned)],
        "letters": [plan.to_dict() for plan in planned[:SHOWN]],
    }


def plan_view(planned: Sequence[Planned]) -> RenderableType:
    """The plan for people: how many in which mode and why, and a table of the first."""
    lines = []
    for mode, why, number in _outcomes(planned):
        what = Text.assemble("would ", (mode, "bold")) if mode else Text("would be refused", style="yellow")
        lines.append(Text.assemble((counted(number), "bold"), " ", what, ": ", text(why)))
    rows: list[Cells] = [
        {
            "id": letter.id,
            "tenant": text(letter.tenant),
            "thread": text(letter.thread_id),
            "graph": text(letter.graph),
            "mode": Text("refused", style="yellow") if preview.refusal else preview.mode,
            "why": headline(preview.refusal or preview.why),
        }
        for letter, preview in planned[:SHOWN]
    ]
    table = listing(
        rows,
        elastic=("tenant", "thread", "graph", "why"),
        expendable=("why", "graph"),
        sparse=("tenant", "thread", "graph"),
    )
    notes = ["nothing was changed"]
    if len(planned) > len(rows):
        notes.append(f"{len(planned) - len(rows)} more are not shown")
    if len(planned) >= MOST_COUNTED:
        notes.append(f"only the first {MOST_COUNTED:,} were looked at")
    return Group(*lines, table, Text("; ".join(notes), style="dim"))
