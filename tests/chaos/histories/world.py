"""Where histories take place: one database, several simulated workers, and the bells between them.

What is done is done to the ledger and to the model; then the two are compared, and the promises checked.
"""

from __future__ import annotations

import copy
import uuid
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NoReturn
from uuid import UUID

import psycopg
from tests.chaos.histories.model import Model
from tests.chaos.histories.move import GRAPHS, HOLDS, Context, Grip, Move, OfGrip
from tests.chaos.histories.picture import TICK, differences, look
from tests.chaos.histories.promises import broken_promises
from tests.chaos.histories.requests import Replay
from tests.chaos.histories.running import Claim, Succeed, Take, taken
from tests.chaos.histories.state import BREAKER_TRIALS, Bell, Broken, Outcome
from tests.chaos.histories.upkeep import Beat, Enlist, LookAtOwn, LookForExpired, StrikeOffSilent

from threadmill.core.database import connect
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Step, carry_out, send
from threadmill.core.transitions import announce_graph
from threadmill.producers.catalogue import Catalogue

# No statement waits for longer: all that it may wait for is another's transaction, which ends.
PATIENCE = 20.0

# Of these nothing is told, unless something is wrong with it.
QUIET = (Beat, Enlist, LookAtOwn, LookForExpired)

_EMPTY = (
    "truncate threads, runs, attempts, dead_letters, held_lanes, dead_letter_actions, replay_groups,"
    " workers, limits, breakers,"
    " checkpoints, checkpoint_blobs, checkpoint_writes"
)
_LATER = {
    "runs": ("run_at", "rank", "deadline", "dispatched_at", "created_at", "started_at", "finished_at"),
    "attempts": ("started_at", "ended_at"),
    "dead_letters": ("next_replay_at",),
    "workers": ("heartbeat_at",),
    "breakers": ("open_until", "opened_at"),
}
_PASS = [
    f"update {table} set {', '.join(f'{column} = {column} - %(time)s' for column in columns)}"
    for table, columns in _LATER.items()
]


@dataclass
class Tally:
    """What was done, in all histories."""

    histories: int = 0
    steps: Counter[str] = field(default_factory=Counter)  # by rule
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and what became of it
    together: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by kinds, and who waited
    letters: Counter[str] = field(default_factory=Counter)  # by reason
    healed: Counter[str] = field(default_factory=Counter)  # how runs stood at the end


@dataclass
class Process:
    """A simulated worker process. frozen: it does nothing, nor does it beat."""

    name: str
    worker: UUID
    alone: bool
    frozen: bool = False


class Stage:
    """The connections, for any number of histories, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tally = Tally()
        self._stack = ExitStack()
        self.superuser = self._stack.enter_context(psycopg.connect(settings.database_url, autocommit=True))
        self.superuser.execute("set search_path to threadmill")
        self.connection = self._stack.enter_context(connect(settings))
        self.beside = self._stack.enter_context(connect(settings))
        self.holding = self._stack.enter_context(connect(settings))
        for connection in (self.superuser, self.connection, self.beside, self.holding):
            connection.prepare_threshold = 0
            connection.execute(f"set statement_timeout = '{PATIENCE:g}s'")
        self.holding.autocommit = False
        self.thread = self._stack.enter_context(ThreadPoolExecutor(1))
        self.catalogue = Catalogue(3600)
        self._announce()

    def _announce(self) -> None:
        for graph in GRAPHS:
            policy = {"on_dead_letter": "hold" if graph == HOLDS else "skip"}
            parameters = {
                "name": graph,
                "version": "1",
                "topology_hash": "",
                "input_schema": {},
                "channels": [],
                "nodes": ["node"],
                "policy": policy,
            }
            send(self.connection, Batch([Step(announce_graph(), parameters)]))
        carry_out(self.connection, self.catalogue.read())

    def empty(self) -> None:
        """Forgets the history before."""
        self.holding.rollback()
        self.superuser.execute(_EMPTY)

    def close(self) -> None:
        self._stack.close()


class World:
    """One history."""

    def __init__(self, stage: Stage) -> None:
        stage.empty()
        stage.tally.histories += 1
        self._stage = stage
        self.tally = stage.tally
        self.model = Model()
        self.history: list[str] = []
        self.bells: list[Bell] = []
        self.grips: list[Grip] = []
        self.lost: list[Grip] = []  # attempts whose workers were gone when the leader looked
        self.refused: Counter[Grip] = Counter()  # writes that were fenced, and not counted yet
        self._names: dict[UUID, str] = {}
        self._picture = look(stage.superuser)
        self.processes = [Process(f"w{n}", uuid.uuid4(), alone=n == 4) for n in (1, 2, 3, 4)]
        for process in self.processes:
            self.enlist(process)

    # Workers.

    def enlist(self, process: Process) -> None:
        """Enters the process under a new id."""
        process.worker = uuid.uuid4()
        count = sum(name.split("'")[0] == process.name for name in self._names.values())
        self._names[process.worker] = process.name + "'" * count
        self.do(Enlist(process.worker))

    def process_of(self, grip: Grip) -> Process | None:
        return next((process for process in self.processes if process.worker == grip.worker), None)

    def is_frozen(self, grip: Grip) -> bool:
        process = self.process_of(grip)
        return process is not None and process.frozen

    def is_live(self, grip: Grip) -> bool:
        return self.model.holds_lease(grip.run_id, grip.attempt)

    # Doing.

    def do(self, move: Move) -> Outcome:
        """Does the move, and checks everything. Raises Broken."""
        told = move.told(self.model)
        try:
            seen = move.carry_out(self._stage.connection, self._context())
        except psycopg.Error as error:
            self.fail(f"{told} raised {type(error).__name__}: {error}")
        expected = move.apply(self.model, seen)
        self._count(move, seen)
        self._learn_names(self.model)
        if not isinstance(move, QUIET) or seen != expected:
            self.write_down(f"{told} -> {self._outcome(seen)}")
        if seen != expected:
            self.fail(f"{told} gave {self._outcome(seen)}, expected {self._outcome(expected)}")
        self._compare(move)
        self._settle(move, seen)
        return seen

    def do_together(self, first: Move, second: Move, *, crash: bool) -> tuple[Outcome | None, Outcome]:
        """The second begins while the first has sent all it has to say and has not committed.

        crash: the first never commits. Whether the second waits is Postgres' to say; if it does, it must
        come out as though it had begun afterwards, and if not, as though the two had been done in one order
        or the other.
        """
        told = f"{first.told(self.model)} || {second.told(self.model)}"
        stage, context = self._stage, self._context()
        try:
            one = first.carry_out(stage.holding, context)
            answer = stage.thread.submit(second.carry_out, stage.beside, context)
            waited = self._is_waiting(answer)
            if crash:
                stage.holding.rollback()
            else:
                stage.holding.commit()
            two = answer.result(PATIENCE)
        except psycopg.Error as error:
            self.fail(f"{told} raised {type(error).__name__}: {error}")
        self.tally.together[first.kind, second.kind, "waited" if waited else "did not wait"] += 1
        orders = self._orders((first, None if crash else one), (second, two), waited)
        model, why = self._explanation(orders, first, second, waited)
        came = "crash" if crash else self._outcome(one)
        self.write_down(f"{told}{' (waits)' * waited} -> {came} || {self._outcome(two)}")
        if model is None:
            self.fail(f"no order explains the last step:\n    {why}")
        self.model = model
        self._compare(first, second)
        if not crash:
            self._settle(first, one)
        self._settle(second, two)
        return None if crash else one, two

    def _is_waiting(self, answer: Future[Outcome]) -> bool:
        """Whether it waits for the transaction that is being held; returns once that is certain."""
        pid = self._stage.beside.info.backend_pid
        while True:
            try:
                answer.exception(0.001)
            except NotYet:
                row = self._stage.superuser.execute("select pg_blocking_pids(%s)", [pid]).fetchone()
                if row is not None and row[0]:
                    return True
            else:
                return False

    def _orders(
        self, first: tuple[Move, Outcome | None], second: tuple[Move, Outcome], waited: bool
    ) -> list[list[tuple[Move, Outcome]]]:
        """The orders in which the two may be taken to have been done."""
        (one, seen) = first
        if seen is None:
            return [[second]]
        return [[(one, seen), second]] if waited else [[(one, seen), second], [second, (one, seen)]]

    def _explanation(
        self, orders: list[list[tuple[Move, Outcome]]], first: Move, second: Move, waited: bool
    ) -> tuple[Model | None, str]:
        """The model after the order that explains what was seen; else None, and why none of them does."""
        picture = look(self._stage.superuser)
        why = []
        for order in orders:
            for spare in (0, 1) if self._are_trials(first, second, waited) else (0,):
                model = copy.deepcopy(self.model)
                model.trials += spare
                model.locked = self._locked_by(first) if waited else self._locked_by(first, second)
                found = []
                for move, seen in order:
                    expected = move.apply(model, seen)
                    self._learn_names(model)
                    if expected != seen:
                        gave = f"gave {self._outcome(seen)}, expected {self._outcome(expected)}"
                        found.append(f"{move.kind} {gave}")
                found += differences(model, picture, self._names)
                model.trials, model.locked = BREAKER_TRIALS, None
                if not found:
                    return model, ""
                why.append(f"as {' then '.join(move.kind for move, _ in order)}: " + "; ".join(found))
        return None, "\n    ".join(why)

    def _are_trials(self, one: Move, two: Move, waited: bool) -> bool:
        """Claims on two lanes see nothing of each other: both may be the last to try a half-open breaker."""
        return not waited and isinstance(one, Claim) and isinstance(two, Claim)

    def _locked_by(self, *moves: Move) -> frozenset[UUID]:
        lanes = {move.on(self.model) for move in moves}
        return frozenset(run.id for run in self.model.runs.values() if lanes & {None, run.lane})

    def pass_time(self, ticks: int) -> None:
        """So many ticks pass, and every worker that can has beaten since."""
        self.write_down(f"{ticks} ticks pass")
        with self._stage.superuser.pipeline():
            for statement in _PASS:
                self._stage.superuser.execute(
                    statement.replace("%(time)s", f"interval '{ticks * TICK} s'").encode()
                )
        self.model.now += ticks
        self._compare()
        for process in self.processes:
            if not process.frozen:
                self.beat(process)

    def beat(self, process: Process) -> bool:
        """Whether it was still listed; if not, it goes on under a new id."""
        if self.do(Beat(process.worker)).word == "beaten":
            return True
        self.enlist(process)
        return False

    # After each.

    def _context(self) -> Context:
        return Context(self._stage.settings, self._stage.catalogue, self._picture.letter_ids)

    def _compare(self, *moves: Move) -> None:
        self._learn_names(self.model)
        before, after = self._picture, look(self._stage.superuser)
        if found := differences(self.model, after, self._names):
            self.fail("; ".join(found))
        replayed = {move.run_id for move in moves if isinstance(move, Replay)}
        if broken := broken_promises(before, after, replayed):
            self.fail("; ".join(broken))
        for run_id, letter_id in before.letter_ids.items():
            if after.letter_ids.get(run_id) != letter_id:
                self.fail(f"the dead letter of {self._names[run_id]} became another")
        self._picture = after

    def _settle(self, move: Move, seen: Outcome) -> None:
        """What the mover has from it: bells to ring, a run to execute, a refusal to count."""
        self.bells += seen.bells
        if isinstance(move, Claim) and seen.word == "claimed":
            self.grips.append(Grip(move.worker, move.run_id, self.model.runs[move.run_id].attempt))
        if isinstance(move, (Take, Succeed)):
            self.grips += [Grip(move.worker, *attempt) for attempt in taken(seen)]
        if isinstance(move, StrikeOffSilent):
            orphans = [run for run in self.model.runs.values() if run.status == "running"]
            self.lost = [
                Grip(run.worker, run.id, run.attempt)
                for run in orphans
                if run.worker is not None and run.worker not in self.model.workers
            ]
        if isinstance(move, OfGrip) and seen.word in ("fenced", "LeaseLost"):
            for grip in self.grips:
                if (grip.run_id, grip.attempt) == (move.run_id, move.attempt):
                    self.refused[grip] += 1

    def _learn_names(self, model: Model) -> None:
        for run in model.runs.values():
            self._names.setdefault(run.id, run.name)

    def _count(self, move: Move, seen: Outcome) -> None:
        self.tally.moves[move.kind, seen.word] += 1

    def _outcome(self, outcome: Outcome) -> str:
        bells = [f"rings for {self._name(bell.run_id)}{' alone' * bell.alone}" for bell in outcome.bells]
        told = [] if outcome.told is None else [self._tell(outcome.told)]
        return ", ".join([outcome.word, *told, *bells])

    def _tell(self, told: object) -> str:
        if isinstance(told, tuple):
            return f"({', '.join(self._tell(part) for part in told)})"
        return self._name(told) if isinstance(told, UUID) else str(told)

    def _name(self, id_: UUID) -> str:
        return self._names.get(id_, str(id_))

    def write_down(self, line: str) -> None:
        """Another line of the history."""
        self.history.append(line)

    def fail(self, what: str) -> NoReturn:
        """Says what is wrong, and how it came to it. Raises Broken."""
        lines = "\n".join(f"  {number:>3}. {line}" for number, line in enumerate(self.history, 1))
        raise Broken(f"{what}\n\nThe history:\n{lines}")
