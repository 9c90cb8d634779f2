"""What an attack came to, in figures."""

from __future__ import annotations

import datetime
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

from tests.chaos.evidence import Evidence, Fault, Kind, Transition
from tests.chaos.verdict import TERMINAL, repeated_nodes

BELLS_LOST = (
    Kind.REDIS_FLUSH,
    Kind.REDIS_RESTART,
    Kind.REDIS_CUT,
    Kind.REDIS_SILENT,
    Kind.REDIS_SILENT_CUT,
)


@dataclass
class Times:
    """Seconds. never: how often what was waited for did not come."""

    seconds: list[float] = field(default_factory=list)
    never: int = 0

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        if not ordered:
            return {"count": 0, "never": self.never}
        return {
            "count": len(ordered),
            "p50": round(statistics.median(ordered), 2),
            "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
            "max": round(ordered[-1], 2),
            "never": self.never,
        }


def figures(evidence: Evidence, offences: dict[str, list[str]]) -> dict[str, Any]:
    """The report, as JSON values."""
    again = repeated_nodes(evidence)
    zombies = [effect for effect in evidence.effects if not effect.held]
    story = _Story(evidence)
    return {
        "faults": dict(Counter(str(fault.kind) for fault in evidence.faults)),
        "runs": len(evidence.runs),
        "threads": len(evidence.lanes()),
        "statuses": dict(Counter(run.status for run in evidence.runs)),
        "dead letters": dict(Counter(evidence.letters.values())),
        "attempts recorded": dict(Counter(row.outcome for row in evidence.attempts)),
        "causes": dict(Counter(f"{row.outcome}: {row.cause}" for row in evidence.attempts)),
        "lost runs": len(offences["what was enqueued is there"]) + len(offences["every run ended"]),
        "lost or duplicated inputs": len(offences["inputs are there once"]),
        "order violations": len(offences["inputs are in order"]) + len(offences["attempts do not overlap"]),
        "finished nodes run again": len(offences["finished nodes stay finished"]),
        "unfenced writes": len(offences["nothing unfenced is stored"])
        + len(offences["checkpoints are one chain"]),
        "nodes run again, their end not stored": sum(again.values()),
        "results on a checkpoint never stored": len(evidence.stored - evidence.found),
        "zombies' effects, their writes refused": len(zombies),
        "enqueues refused and repeated": evidence.refusals,
        "enqueue, Postgres there": _enqueues(evidence, calm=True).summary(),
        "enqueue, all": _enqueues(evidence).summary(),
        "rescue after SIGKILL, nothing else amiss": story.rescues(Kind.KILL, calm=True).summary(),
        "rescue after SIGKILL, all": story.rescues(Kind.KILL).summary(),
        "rescue after SIGSTOP, all": story.rescues(Kind.FREEZE).summary(),
        "pick-up after a lost bell, nothing else amiss": story.pick_ups(calm=True).summary(),
        "pick-up after a lost bell, all": story.pick_ups().summary(),
        "hand-over by a drain, nothing else amiss": story.hand_overs(calm=True).summary(),
        "hand-over by a drain, all": story.hand_overs().summary(),
        "longest pause of a run": story.longest_pause(),
        "from ready to claimed": story.starts().summary(),
        "offences": {name: len(found) for name, found in offences.items()},
    }


# What was measured while nothing else was amiss, and what it must not exceed, in seconds.
LIMITS = {
    "rescue after SIGKILL, nothing else amiss": 10.0,
    "pick-up after a lost bell, nothing else amiss": 5.0,
    "hand-over by a drain, nothing else amiss": 1.0,
    "enqueue, Postgres there": 1.0,
}


def late(report: dict[str, Any]) -> list[str]:
    """Which figures (the 99th of a hundred) are over their limit."""
    over = {name: report[name].get("p99", 0.0) for name in LIMITS}
    return [f"{name}: {seconds} s" for name, seconds in over.items() if seconds > LIMITS[name]]


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and name in ("faults", "offences", "causes"):
            lines.append(f"{name}:")
            lines += [f"    {key:<48} {count:>6}" for key, count in sorted(value.items())]
        elif isinstance(value, dict):
            lines.append(f"{name:<52} " + ", ".join(f"{key} {item}" for key, item in value.items()))
        else:
            lines.append(f"{name:<52} {value}")
    return "\n".join(lines)


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, default=str)


def _enqueues(evidence: Evidence, *, calm: bool = False) -> Times:
    """How long they took. calm: only those during which Postgres was not restarted.

    No other fault comes between Postgres and those who enqueue.
    """
    restarts = [
        fault for fault in evidence.faults if fault.kind in (Kind.POSTGRES_RESTART, Kind.POSTGRES_TERMINATE)
    ]
    return Times(
        [
            seconds
            for began, seconds in evidence.enqueues
            if not calm or not _overlap(restarts, began, began + datetime.timedelta(seconds=seconds))
        ]
    )


class _Story:
    """The runs' transitions, told run by run."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._of_run: defaultdict[UUID, list[Transition]] = defaultdict(list)
        for transition in evidence.transitions:
            self._of_run[transition.run_id].append(transition)

    def rescues(self, kind: Kind, *, calm: bool = False) -> Times:
        """From a fault of this kind to the next claim of each run that its worker had.

        calm: only where nothing else was done to Postgres or to a worker between the two.
        """
        times = Times()
        for fault in self._faults(kind):
            for held, following in self._held_by(fault):
                claim = next((t for t in following if t.status == "running"), None)
                if following and following[0].status in TERMINAL:
                    continue  # it ended in the moment of the fault, or after a thaw
                if claim is None:
                    times.never += 1
                elif not calm or self._is_calm(fault.begins, claim.at, but=fault):
                    times.seconds.append(_seconds(fault.begins, claim.at))
                del held
        return times

    def _held_by(self, fault: Fault) -> Iterator[tuple[Transition, list[Transition]]]:
        """The claims under which the fault's worker held runs when it struck, and what came after each."""
        for story in self._of_run.values():
            before = [t for t in story if t.at <= fault.begins]
            if before and before[-1].status == "running" and before[-1].pid == fault.pid:
                yield before[-1], story[len(before) :]

    def pick_ups(self, *, calm: bool = False) -> Times:
        """From the loss of a bell, or from when it could not be rung, to the claim."""
        times = Times()
        faults = [fault for kind in BELLS_LOST for fault in self._faults(kind) if fault.slot is None]
        for ready, claim in self._waits():
            for fault in faults:
                rung_before = ready <= fault.begins < claim
                unrung = fault.begins <= ready < fault.ends
                if fault.kind in (Kind.REDIS_FLUSH, Kind.REDIS_RESTART):
                    lost = rung_before or unrung
                else:
                    lost = unrung
                if lost and (not calm or self._is_calm(ready, claim, but=fault)):
                    times.seconds.append(_seconds(max(ready, fault.begins), claim))
                    break
        return times

    def starts(self) -> Times:
        """From when a run could have been claimed to its claim, again after each attempt."""
        return Times([_seconds(ready, claim) for ready, claim in self._waits()])

    def _waits(self) -> Iterator[tuple[datetime.datetime, datetime.datetime]]:
        """When a run could have been claimed, and when it was."""
        for runs in self._evidence.lanes().values():
            free_at: datetime.datetime | None = None
            for run in runs:
                story = self._of_run[run.id]
                for pending, claimed in pairwise(story):
                    if pending.status == "pending" and claimed.status == "running":
                        yield max(pending.at, free_at or pending.at), claimed.at
                free_at = story[-1].at if story and story[-1].status in TERMINAL else free_at

    def hand_overs(self, *, calm: bool = False) -> Times:
        """From the end of a drained attempt to the next claim.

        calm: only where nothing but SIGTERM was done to anything between the two.
        """
        times = Times()
        others = [fault for fault in self._evidence.faults if fault.kind is not Kind.TERM]
        for row in self._evidence.attempts:
            if row.outcome != "drained":
                continue
            claims = [
                t for t in self._of_run[row.run_id] if t.status == "running" and t.attempt > row.attempt
            ]
            if not claims:
                times.never += 1
            elif not calm or not _overlap(others, row.ended_at, claims[0].at):
                times.seconds.append(_seconds(row.ended_at, claims[0].at))
        return times

    def longest_pause(self) -> float:
        """The longest time, in seconds, that a run which had been claimed lay pending again."""
        pauses = [
            _seconds(pending.at, claimed.at)
            for story in self._of_run.values()
            for pending, claimed in pairwise(story)
            if pending.was == "running" and pending.status == "pending" and claimed.status == "running"
        ]
        return round(max(pauses, default=0.0), 2)

    def _faults(self, kind: Kind) -> list[Fault]:
        return [fault for fault in self._evidence.faults if fault.kind is kind]

    def _is_calm(self, begins: datetime.datetime, ends: datetime.datetime, but: Fault) -> bool:
        """Whether no worker and no way to Postgres suffered anything else meanwhile, or just before."""
        others = [f for f in self._evidence.faults if f is not but and not f.kind.startswith("Redis")]
        return not _overlap(others, begins, ends)


def _overlap(faults: Iterable[Fault], begins: datetime.datetime, ends: datetime.datetime) -> bool:
    """Whether one of them lasted into this time, or had ended shortly before."""
    shortly = datetime.timedelta(seconds=2)
    return any(fault.begins <= ends and fault.ends + shortly >= begins for fault in faults)


def _seconds(begins: datetime.datetime, ends: datetime.datetime) -> float:
    return max(0.0, (ends - begins).total_seconds())
