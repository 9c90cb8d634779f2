"""Another input for a run that failed, or another state to go on from; the first input is kept.

An input is checked as at an enqueue, with the same errors. What is written into the state before a run goes
on where it failed names channels of the graph, as the graph is announced at present.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.document import to_json
from threadmill.core.errors import InvalidInput, InvalidOption
from threadmill.core.merge_patch import merge
from threadmill.core.models import Run, table_of
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import edit_input
from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.preview import REPLAYABLE, check_mode, preview_of
from threadmill.dlq.replaying import Act, Done, read_letter, refused, replay_standing, stand_under_lock
from threadmill.producers.catalogue import Catalogue

_runs = table_of(Run)
_INPUT = select(_runs.c.input).where(_runs.c.id == bindparam("run_id", type_=UUID(as_uuid=True)))


class Edit(NamedTuple):
    """What is to be changed: `input` takes the place of the run's, `patch` is merged into it (RFC 7386)."""

    input: Any = None
    patch: Any = None

    def __bool__(self) -> bool:
        return self.input is not None or self.patch is not None

    def checked(self, max_bytes: int) -> Edit:
        """The edit as JSON values. Raises InvalidInput and InvalidOption."""
        if self.input is not None and self.patch is not None:
            raise InvalidOption("patch", "…", "give either input or patch, not both")
        return Edit(
            *(
                None if value is None else json.loads(to_json(name, value, max_bytes=max_bytes))
                for name, value in (("input", self.input), ("patch", self.patch))
            )
        )


class Editor:
    """Edits and checks what is edited. max_bytes: how large an input may be."""

    def __init__(self, catalogue: Catalogue, max_bytes: int) -> None:
        self._catalogue = catalogue
        self.max_bytes = max_bytes

    def edit(self, act: Act, edit: Edit) -> Plan[DeadLetter]:
        """Raises DeadLetterNotFound, NotReplayable, InvalidOption, InvalidInput and UnknownGraph."""
        edit = edit.checked(self.max_bytes)
        if not edit:
            raise InvalidOption("patch", None, "give an input or a patch")
        row = yield from stand_under_lock(act)
        yield from self._apply(act, row, edit)
        return (yield from read_letter(row["id"]))

    def replay(self, act: Act, mode: str, edit: Edit) -> Plan[Done]:
        """`replay_letter` of what is edited first, in one transaction. Raises what `edit` raises."""
        edit = edit.checked(self.max_bytes)
        check_mode(mode)
        row = yield from stand_under_lock(act)
        preview = preview_of(row, mode)
        state_patch = None
        if edit and preview.refusal is None:
            if preview.mode == "resume":
                state_patch = state_patch_of(row, edit)
            else:
                yield from self._apply(act, row, edit)
        return (yield from replay_standing(act, row, mode, state_patch))

    def edited_input(self, row: Row, edit: Edit) -> Plan[Any]:
        """The run's input as it would be edited. row: of `standing`. Raises what `edit` raises."""
        if row["commanded"]:
            raise InvalidOption("patch", "…", "the run was given a command; it has no input to edit")
        yield from self._catalogue.read()
        graph = self._catalogue.graph(row["graph"])
        (runs,) = yield Batch([Step(_INPUT, {"run_id": row["run_id"]})], final=False)
        value = edit.input if edit.patch is None else merge(runs[0]["input"], edit.patch)
        to_json("input", value, max_bytes=self.max_bytes)
        graph.check_input(value)
        return value

    def _apply(self, act: Act, row: Row, edit: Edit) -> Plan[None]:
        """Edits the run's input. row: of `stand_under_lock`."""
        if row["status"] not in REPLAYABLE:
            raise (yield from refused(act, row["status"], "only waiting and parked ones can be edited"))
        if row["run_id"] is None:
            reason = "its message could not be delivered, so there is no input to edit"
            raise (yield from refused(act, row["status"], reason))
        value = yield from self.edited_input(row, edit)
        facts = {"with": "input" if edit.patch is None else "patch", "keys": keys_of(edit)}
        parameters = {"letter_id": row["id"], "input": value, "by": act.by, "facts": facts}
        yield Batch([Step(edit_input(), parameters)], final=False)


def state_patch_of(row: Row, edit: Edit) -> dict[str, Any]:
    """The patch, if the state has the channels that it names. row: of `standing`."""
    if edit.input is not None:
        raise InvalidOption("input", "…", "a run that resumes is past its input; give a patch of its state")
    if not isinstance(edit.patch, dict) or not edit.patch:
        raise InvalidInput("patch", "", "must be an object that names channels of the state")
    channels = row["channels"] or ()
    for name in edit.patch:
        if name not in channels:
            raise InvalidInput(
                "patch", f".{name}", f"is no channel of the state; there are {', '.join(channels)}"
            )
    return dict(edit.patch)


def keys_of(edit: Edit) -> list[str]:
    """What was edited, for the record: the names only, as values may be a secret of the tenant's."""
    value = edit.input if edit.patch is None else edit.patch
    return sorted(value) if isinstance(value, dict) else []
