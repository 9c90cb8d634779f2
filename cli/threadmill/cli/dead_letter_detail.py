"""One dead letter in full: what failed and where, what was tried, and what a replay would do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from threadmill.cli.output import Cells, ago, coloured, facts, listing, moment, pretty, text, took
from threadmill.cli.runs import error_view

if TYPE_CHECKING:
    from threadmill.dlq.detail import Action, AttemptRecord, Change, HeldLane, LetterDetail
    from threadmill.dlq.preview import Preview
    from threadmill.dlq.scratch import Trial

# What is longer is cut off in the terminal; --json has it.
MAX_LINES = 40
MAX_VALUE = 200

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def detail_view(detail: LetterDetail) -> RenderableType:
    """All of it, what is read first at the top."""
    parts: list[RenderableType] = [_facts(detail)]
    for title, content in (
        ("where it failed", _exceptions_view(detail)),
        ("attempts", _attempts_table(detail.attempts)),
        ("what the run had changed", diff_view(detail.diff)),
        ("state at the failure", None if detail.state is None else document_view(detail.state)),
        ("input", None if detail.input is None else document_view(detail.input)),
        (
            "input before it was edited",
            None if detail.letter.original_input is None else document_view(detail.letter.original_input),
        ),
        ("what was done", _actions_view(detail.actions)),
    ):
        if content is not None:
            parts += [Text(f"\n{title}", style="bold"), content]
    return Group(*parts)


def _facts(detail: LetterDetail) -> RenderableType:
    letter = detail.letter
    versions = ", ".join(f"{name} {version}" for name, version in letter.versions.items())
    return facts(
        {
            "dead letter": letter.id,
            "status": coloured(letter.status),
            "reason": letter.reason,
            "error": error_view(letter.error),
            "graph": text(f"{letter.graph}, version {letter.graph_version or '?'}") if letter.graph else None,
            "tenant": text(letter.tenant) if letter.tenant else None,
            "thread": text(f"{letter.thread_id}, seq {letter.seq}") if letter.thread_id else None,
            "holds": _held_view(detail.held_lane),
            "run": letter.run_id,
            "node": text(letter.node) if letter.node else None,
            "next": text(", ".join(letter.next_nodes)) if letter.next_nodes else None,
            "checkpoint": letter.checkpoint_id,
            "group": letter.fingerprint,
            "versions": text(versions) if versions else None,
            "replays": _replays(letter.replays, letter.replay_mode, letter.replay_why),
            "next replay": _next_replay(detail),
            "a replay": preview_line(detail.preview),
            "created": moment(letter.created_at),
        }
    )


def _held_view(lane: HeldLane | None) -> RenderableType | None:
    if lane is None:
        return None
    until = f", until {moment(lane.until)}" if lane.until else ""
    return text(f"its thread, since {moment(lane.since)}{until}; {lane.waiting} runs wait", style="red")


def _replays(number: int, mode: str | None, why: str | None) -> RenderableType | None:
    if not number:
        return None
    return text(f"{number}, at last by {mode or '?'}" + (f": {why}" if why else ""))


def _next_replay(detail: LetterDetail) -> RenderableType | None:
    letter = detail.letter
    if letter.status == "waiting":
        return Text(moment(letter.next_replay_at) or "when somebody asks for it")
    return Text("when somebody asks for it") if letter.status == "parked" else None


def preview_line(preview: Preview) -> Text:
    """What a replay would do and why, or why it would be refused."""
    if preview.refusal:
        return text(f"is refused: {preview.refusal}", style="yellow")
    return Text.assemble("would ", (preview.mode, "bold"), ": ", text(preview.why))


def _exceptions_view(detail: LetterDetail) -> RenderableType | None:
    letter = detail.letter
    if not any(exception.get("frames") for exception in letter.exceptions):
        return text(letter.traceback.rstrip()) if letter.traceback else None
    lines = [line for exception in letter.exceptions for line in _exception_lines(exception)]
    return Text("\n").join(lines)


def _exception_lines(exception: Mapping[str, Any]) -> Iterator[Text]:
    """The exception, then the frames in the graph's own code, then those of libraries; the innermost last."""
    link = exception.get("link")
    yield Text.assemble(
        text("" if link in (None, "raised") else f"{link} ", style="dim"),
        text(f"{exception.get('type')}: {exception.get('message') or ''}".rstrip(" :"), style="red"),
    )
    frames = exception.get("frames") or ()
    for frame in frames:
        if frame.get("own"):
            yield from _frame_lines(frame)
    others = [frame for frame in frames if not frame.get("own")]
    for frame in others:
        yield from _frame_lines(frame, style="dim")
    if exception.get("omitted"):
        yield text(f"  and {exception['omitted']} frames more", style="dim")


def _frame_lines(frame: Mapping[str, Any], style: str = "") -> Iterator[Text]:
    place = f"{frame.get('file')}:{frame.get('line')}" if frame.get("line") else f"{frame.get('file')}"
    yield Text.assemble(
        "  ", text(place, style=style or "bold"), text(f" in {frame.get('function')}", style=style)
    )
    if frame.get("code"):
        yield text(f"      {frame['code']}", style=style)


def _attempts_table(attempts: Sequence[AttemptRecord]) -> RenderableType | None:
    rows: list[Cells] = [
        {
            "attempt": str(attempt.attempt),
            "replay": str(attempt.replay or ""),
            "outcome": coloured(attempt.outcome),
            "cause": text(attempt.cause),
            "node": text(attempt.node),
            "exception": text(attempt.exception_type),
            "ended": ago(attempt.ended_at),
            "took": took(attempt.started_at, attempt.ended_at),
            "worker": attempt.worker_id or "",
        }
        for attempt in attempts
    ]
    if not rows:
        return None
    return listing(
        rows,
        elastic=("cause", "node", "exception"),
        expendable=("worker", "took", "exception", "ended"),
        sparse=("replay", "node", "took", "worker"),
    )


def diff_view(diff: Sequence[Change]) -> RenderableType | None:
    """What was added, removed and changed, a place a line; None for nothing."""
    lines = []
    for change in diff[:MAX_LINES]:
        sign, style = _SIGNS[change.kind]
        after = _value(change.after)
        value = {
            "added": after,
            "removed": _value(change.before),
            "changed": f"{_value(change.before)} → {after}",
        }[change.kind]
        lines.append(Text.assemble((f"{sign} ", style), text(change.path, style=style), " ", text(value)))
    if len(diff) > MAX_LINES:
        lines.append(_more(len(diff) - MAX_LINES, "places"))
    return Text("\n").join(lines) if lines else None


def _value(value: Any) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= MAX_VALUE else f"{written[: MAX_VALUE - 1]}…"


def document_view(document: Any) -> RenderableType:
    """A JSON value over several lines, of which the first are shown."""
    lines = pretty(document).split("\n")
    if len(lines) <= MAX_LINES:
        return Text("\n").join(lines)
    return Text("\n").join([*lines[:MAX_LINES], _more(len(lines) - MAX_LINES, "lines")])


def _more(number: int, what: str) -> Text:
    return Text(f"… {number} {what} more; --json has them", style="dim")


def _actions_view(actions: Sequence[Action]) -> RenderableType | None:
    return Text("\n").join([_action_line(action) for action in actions]) if actions else None


def _action_line(action: Action) -> Text:
    known = {name: value for name, value in action.facts.items() if value is not None}
    details = "".join(
        f" {name}={value if isinstance(value, str) else _value(value)}" for name, value in known.items()
    )
    return Text.assemble(
        text(f"{action.at.astimezone():%Y-%m-%d %H:%M:%S} ", style="dim"),
        (action.action, "bold"),
        text(f" by {action.by}{details}"),
    )


def trial_view(letter_id: str, trial: Trial) -> RenderableType:
    """How a trial on a copy came out; nothing of it was kept."""
    parts: list[RenderableType] = [
        facts(
            {
                "trial of": letter_id,
                "came out": coloured(trial.status),
                "mode": text(f"{trial.mode}: {trial.why}"),
                "error": error_view(trial.error) if trial.error else None,
                "nodes": text(" → ".join(trial.nodes)) if trial.nodes else None,
                "took": f"{trial.seconds:.2f} s",
                "kept": "nothing; the thread and the dead letter are as they were",
            }
        )
    ]
    for title, content in (
        ("what it asks", document_view(trial.interrupts) if trial.interrupts else None),
        ("output", None if trial.output is None else document_view(trial.output)),
        ("what it would change", diff_view(trial.diff)),
    ):
        if content is not None:
            parts += [Text(f"\n{title}", style="bold"), content]
    return Group(*parts)
