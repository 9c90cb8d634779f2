"""Executes a run: claim → graph → what came of it, and the claim of the next.

An attempt ends here in one of four ways: its graph returns, its graph raises, it is asked to drain and does
so at its next superstep, or it is stopped from outside. Whatever ends it is written in one transaction that
compares the attempt's number; what is written after that, by a node that goes on, is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
import structlog
from langgraph.errors import GraphDrained
from langgraph.types import StateSnapshot
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import GraphError, LeaseLost, RunTimeout
from threadmill.core.keys import thread_key
from threadmill.core.models import Run, table_of
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    bury,
    count_fenced,
    end_trial,
    join_breaker,
    keep_newest,
    lock_and_bind,
    lock_thread,
    requeue,
    succeed,
    trip,
)
from threadmill.graphs import OPEN, USED, Classifier, Registry, Verdict, classify, dependency_of
from threadmill.workers.attempts import Attempt, Attempts, Stop
from threadmill.workers.burial import ENDED, Place, burial
from threadmill.workers.claims import BellDropped, Claimed, Claims, Next
from threadmill.workers.ending import Burial, Retry, decide, requeue_parameters
from threadmill.workers.event_writer import EventWriter
from threadmill.workers.failure import Failure, describe, describe_bare, hooks_of
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.herald import Herald
from threadmill.workers.invocation import Invocation, checkpoint_id, failed_node
from threadmill.workers.lease import FENCED
from threadmill.workers.output import as_json, interrupts_of, select_output
from threadmill.workers.patience import patiently
from threadmill.workers.rescue import last_checkpoint
from threadmill.workers.scratch import ScratchInvocation
from threadmill.workers.stuck import StuckWork

# How long an attempt that was stopped may take to end, in seconds, before its work is left to itself.
STOP_GRACE = 5.0

_runs = table_of(Run)
_STANDING = select(_runs.c.status, _runs.c.attempt).where(
    _runs.c.id == bindparam("run_id", type_=UUID(as_uuid=True))
)

_log = structlog.get_logger("threadmill.executor")


class RunPostponed(Exception):
    """The run is pending again; nothing is to be shown of this attempt."""


class RunFailed(Exception):
    """The run failed; its record is in the ledger. The text is what Flower may show: no message, no input."""


class Outcome(NamedTuple):
    """What came of an attempt. error: None where its run has succeeded; else RunFailed, RunPostponed or
    LeaseLost, or whatever could not be recorded. following: the run with which its slot goes on."""

    error: Exception | None
    following: Claimed | None


class Account(NamedTuple):
    """What is told of an attempt that failed."""

    failure: Failure
    place: Place


class GraphExited(Exception):
    """The graph's code raised what asks a process or a task to end, which are not its own."""


class Executor:
    """Executes runs on the loop it was made on, any number at a time."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        database: AsyncDatabase,
        herald: Herald,
        heartbeat: Heartbeat,
        attempts: Attempts,
        claims: Claims,
        stuck: StuckWork,
        events: EventWriter,
        *,
        what_next: Callable[[float], Next],
        on_node: Callable[[str], None] | None,
    ) -> None:
        """what_next: says what becomes of a slot whose run has succeeded, from when it began with the tenant.
        on_node: is told each node as it begins; None costs nothing."""
        self._settings = settings
        self._registry = registry
        self._database = database
        self._herald = herald
        self._heartbeat = heartbeat
        self._attempts = attempts
        self._claims = claims
        self._stuck = stuck
        self._events = events
        self._what_next = what_next
        self._on_node = on_node
        self.accepts = True  # until the worker drains

    async def claim(self, bell: Bell) -> Claimed:
        """The run of a bell. Raises BellDropped where it is not this worker's to execute, or not now."""
        if not (self.accepts and self._heartbeat.is_alive):
            raise BellDropped
        return await self._claims.claim(bell)

    async def execute(self, claimed: Claimed) -> Outcome:
        """What came of the attempt; it is in the ledger by then."""
        attempt = Attempt(claimed.run, claimed.head, claimed.since)
        run = attempt.run
        with (
            self._attempts.holding(attempt),
            structlog.contextvars.bound_contextvars(
                tenant=run["tenant"], thread=run["thread_id"], run=str(run["id"]), attempt=run["attempt"]
            ),
        ):
            claimed.begun()
            if not self.accepts:  # it was claimed while the worker began to drain
                attempt.control.request_drain("drain")
            started = time.monotonic()
            _log.debug("run.started", graph=run["graph"])
            error: Exception | None = None
            try:
                await self._carry_through(attempt)
            except LeaseLost as lost:
                _log.warning("run.fenced", graph=run["graph"])
                error = lost
            except (RunFailed, RunPostponed) as recorded:
                error = recorded
            except Exception as raised:  # the heartbeat gives the run back
                _log.error("run.unrecorded", graph=run["graph"], error=type(raised).__name__)
                error = raised
            finally:
                attempt.lease.lost = True
                await self._count_refused(attempt)
                _log.info("run.ended", graph=run["graph"], seconds=round(time.monotonic() - started, 3))
        return Outcome(error, attempt.following)

    async def _carry_through(self, attempt: Attempt) -> None:
        """The attempt, from its claim to its end in the ledger."""
        run = attempt.run
        # A graph that this worker does not serve fails when it is loaded, and is recorded then.
        served = run["graph"] in self._registry.names
        policy = self._registry.policy(run["graph"]) if served else GraphPolicy()
        if run["scratch"] is not None:
            await self._try(attempt, policy)
            return
        events = None if run["stream_mode"] is None else self._events.stream(attempt.lease)
        pool = await patiently(self._database.pool)
        invocation = Invocation(attempt, policy, pool, self._on_node, events)
        work = asyncio.create_task(self._invoke(attempt, invocation), name=f"run {run['id']}")
        try:
            await self._wait(attempt, work, policy)
            if not work.done():
                await self._give_up(attempt, invocation, policy)
        finally:
            await self._put_down(attempt, work)
        try:
            output = work.result()
            await self._succeed(attempt, invocation, policy, output)
        except LeaseLost:
            raise
        except GraphDrained:
            await self._hand_over(attempt, invocation, "drain")
        except Exception as error:
            try:
                await self._fail(attempt, invocation, policy, error)
            except (LeaseLost, RunFailed, RunPostponed):
                raise
            except Exception as unrecordable:
                await self._fail_without_words(attempt, policy, error, unrecordable)

    async def _try(self, attempt: Attempt, policy: GraphPolicy) -> None:
        """A trial, from its claim to its end: what came of it is told, and there is nothing else of it."""
        pool = await patiently(self._database.pool)
        trial = ScratchInvocation(attempt, policy, pool, self._on_node, self._settings.max_output_bytes)
        work = asyncio.create_task(self._invoke(attempt, trial), name=f"trial {attempt.run['id']}")
        try:
            await self._wait(attempt, work, trial.policy)
            if not work.done():
                if attempt.stopped.result() in ("taken", "cut off"):
                    raise attempt.lease.lost_now()
                outcome = await trial.failed(RunTimeout("timeout", trial.policy.timeout or 0))
            elif (error := work.exception()) is None:
                outcome = await trial.succeeded(work.result())
            elif isinstance(error, Exception) and not isinstance(error, LeaseLost):
                outcome = await trial.failed(error)
            else:
                raise error
        finally:
            await self._put_down(attempt, work)
        run = attempt.run
        parameters = {"run_id": run["id"], "attempt": run["attempt"], "output": outcome}
        step = Step(end_trial(), parameters)
        if _first(await patiently(lambda: self._database.carry_out(_rows([step])))) is None:
            raise attempt.lease.refuse("end")

    async def _invoke(self, attempt: Attempt, invocation: Invocation | ScratchInvocation) -> Any:
        OPEN.set(self._heartbeat.open_for)
        USED.set(attempt.dependencies)
        try:
            config = await invocation.prepare()
            graph = await self._registry.graph(attempt.run["graph"], config)
            return await invocation.invoke(graph)
        except Exception:
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # Left as it is, nobody would record it, and the run would begin again without end.
            raise GraphExited(f"{type(error).__name__}: {error}") from error

    async def _wait(self, attempt: Attempt, work: asyncio.Task[Any], policy: GraphPolicy) -> None:
        """Returns when the work has ended or is to be stopped, for which the time may be a reason."""
        left = attempt.run["seconds_left"]
        limits: list[tuple[float, Stop]] = []
        if policy.timeout is not None:
            limits.append((policy.timeout, "timeout"))
        if left is not None:
            limits.append((max(left, 0), "deadline"))
        seconds, why = min(limits, default=(None, None))
        await asyncio.wait({work, attempt.stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and why is not None:
            attempt.stop(why)

    async def _give_up(self, attempt: Attempt, invocation: Invocation, policy: GraphPolicy) -> None:
        """Ends an attempt whose graph is still at work. Always raises.

        In the ledger first: from then on, whatever a node that cannot be stopped still does is refused, and
        the lane is another's.
        """
        match attempt.stopped.result():
            case "taken" | "cut off":
                raise attempt.lease.lost_now()
            case "drain timeout":
                await self._hand_over(attempt, invocation, "drain timeout")
            case "timeout":
                await self._time_out(attempt, invocation, policy)
            case "deadline":
                seconds = max(attempt.run["seconds_left"], 0)
                await self._bury_late(attempt, invocation, policy, RunTimeout("deadline", round(seconds, 1)))

    async def _put_down(self, attempt: Attempt, work: asyncio.Task[Any]) -> None:
        """Has the work end; what does not is left to itself, and watched."""
        if not work.done():
            attempt.lease.lost = True
            work.cancel()
            await asyncio.wait({work}, timeout=STOP_GRACE)
        if not work.done() or attempt.threads:
            self._stuck.watch(attempt, work, lambda: self._count_refused(attempt))

    async def _succeed(
        self, attempt: Attempt, invocation: Invocation, policy: GraphPolicy, output: Any
    ) -> None:
        interrupts = interrupts_of(output)
        next_nodes = await invocation.next_nodes(interrupted=interrupts is not None)
        kept = select_output(output, policy)
        parameters = {
            "output": None if kept is None else as_json(kept, self._settings.max_output_bytes),
            "checkpoint_id": invocation.saver.progress.checkpoint_id,
            "thread_status": "interrupted" if next_nodes else "idle",
            "interrupts": interrupts,
            "next_nodes": next_nodes,
            "dependencies": list(attempt.dependencies),
        }
        writes = await invocation.saver.take_writes()
        try:
            await self._finish_and_go_on(attempt, Step(succeed(), parameters), writes, policy)
        except psycopg.Error:
            if writes:  # one of them may be refused for what it holds, and the others not
                await invocation.saver.write_taken()
            raise

    async def _hand_over(self, attempt: Attempt, invocation: Invocation, cause: str) -> None:
        """Gives the run to another worker, at no cost. Always raises RunPostponed."""
        retry = Retry(0, spent=False, waits=0, cause=cause)
        await invocation.saver.flush()
        await self._finish(attempt, "pending", Step(requeue("drained"), requeue_parameters(retry)))
        _log.info("run.handed_over", cause=cause)
        raise RunPostponed

    async def _time_out(self, attempt: Attempt, invocation: Invocation, policy: GraphPolicy) -> None:
        """The attempt took longer than the graph's `timeout`: it is spent. Always raises."""
        error = RunTimeout("timeout", policy.timeout or 0)
        decision = decide(Verdict("transient", why="timeout"), attempt.run, policy)
        if isinstance(decision, Burial):
            await self._bury_late(attempt, invocation, policy, error)
            return
        account = await self._describe(attempt, invocation, error)
        await self._requeue(attempt, "timeout", decision, account)

    async def _bury_late(
        self, attempt: Attempt, invocation: Invocation, policy: GraphPolicy, error: RunTimeout
    ) -> None:
        account = await self._describe(attempt, invocation, error)
        decision = Burial("timeout", f"{error.limit} over")
        await self._bury(attempt, policy, decision, account, status="timeout")

    async def _fail(
        self, attempt: Attempt, invocation: Invocation, policy: GraphPolicy, error: Exception
    ) -> None:
        """Records what the graph raised, and what follows from it. Always raises."""
        run = attempt.run
        verdict = self._classifier(run["graph"])(error)
        account = await self._describe(attempt, invocation, error)
        decision = decide(verdict, run, policy)
        breaker = self._breaker_step(run, policy, verdict, error)
        if isinstance(decision, Burial):
            await self._bury(attempt, policy, decision, account, *breaker)
        else:
            await self._requeue(attempt, "failed", decision, account, *breaker)

    async def _fail_without_words(
        self, attempt: Attempt, policy: GraphPolicy, error: Exception, unrecordable: Exception
    ) -> None:
        """Records a failure whose own record was refused; nothing ends without one. Always raises."""
        _log.error("run.unrecordable", error=type(error).__name__, because=type(unrecordable).__name__)
        account = Account(describe_bare(error, attempt.run["graph"]), Place(await self._reached(attempt)))
        decision = decide(Verdict("transient", why="unrecordable"), attempt.run, policy)
        if isinstance(decision, Burial):
            await self._bury(attempt, policy, decision, account)
        else:
            await self._requeue(attempt, "failed", decision, account)

    def _classifier(self, graph: str) -> Classifier:
        """The graph's own; Threadmill's where the graph is not served here, or its own cannot be loaded."""
        try:
            return self._registry.classifier(graph)
        except GraphError:
            return classify

    def _breaker_step(self, run: Row, policy: GraphPolicy, verdict: Verdict, error: Exception) -> list[Step]:
        """What the failure means to a breaker, in the transaction that records it."""
        dependency = dependency_of(error)
        if verdict.kind == "infrastructure" and dependency is not None:
            return [Step(join_breaker(), {"dependency": dependency, "graph": run["graph"]})]
        if verdict.kind != "transient" or policy.breaker_threshold is None:
            return []
        parameters = {
            "kind": "graph" if dependency is None else "dependency",
            "name": dependency or run["graph"],
            "graph": run["graph"],
            "threshold": policy.breaker_threshold,
            "cooldown": policy.breaker_cooldown,
            "reason": type(error).__name__,
        }
        return [Step(trip(), parameters)]

    async def _describe(self, attempt: Attempt, invocation: Invocation, error: Exception) -> Account:
        try:
            snapshot = await invocation.snapshot()
        except Exception as unreadable:  # the failure is recorded all the same
            _log.warning("run.state_unreadable", error=type(unreadable).__name__)
            snapshot = None
        failure = self._failure(error, attempt.run["graph"], snapshot)
        _log.warning("run.failed", error=failure.exception_type, node=failure.node)
        if snapshot is None:
            return Account(failure, Place(await self._reached(attempt)))
        place = Place(checkpoint_id(snapshot), list(snapshot.next))
        return Account(failure, place)

    def _failure(self, error: Exception, graph: str, snapshot: StateSnapshot | None) -> Failure:
        hooks = hooks_of(self._registry, graph)
        return describe(error, graph, failed_node(snapshot), task=failed_task(snapshot), **hooks)

    async def _reached(self, attempt: Attempt) -> str | None:
        """The run's last checkpoint, where the graph cannot tell: without one a replay takes the run's input
        for not yet applied."""
        return await patiently(lambda: self._database.carry_out(last_checkpoint(attempt.run)))

    async def _requeue(
        self,
        attempt: Attempt,
        outcome: str,
        retry: Retry,
        account: Account,
        *breaker: Step,
    ) -> None:
        record = account.failure.record(account.place.checkpoint_id)
        step = Step(requeue(outcome), requeue_parameters(retry, error=account.failure.error(), **record))
        await self._finish(attempt, "pending", step, *breaker)
        _log.info("run.retried", cause=retry.cause, delay=round(retry.delay, 3), spent=retry.spent)
        raise RunPostponed

    async def _bury(
        self,
        attempt: Attempt,
        policy: GraphPolicy,
        decision: Burial,
        account: Account,
        *breaker: Step,
        status: str = "error",
    ) -> None:
        run, failure = attempt.run, account.failure
        timed_out = status == "timeout"
        steps = burial(
            self._settings,
            policy,
            run,
            bury(status, "timeout" if timed_out else "failed"),
            decision.reason,
            failure,
            account.place,
            cause=decision.cause,
            message=failure.message,
            spent=1,
            lost=0,
        )
        await self._end(attempt, status, steps, ENDED, *breaker)
        raise RunFailed(f"{failure.exception_type}: see `threadmill runs show {run['id']}`") from None

    async def _finish(self, attempt: Attempt, status: str, end: Step, *more: Step) -> None:
        """Ends the attempt in one round trip; then tells whoever waits, and rings for its thread's next run.

        more: what is to be done in the same transaction, and its last row logged. Raises LeaseLost.
        """
        run = attempt.run
        lock = Step(lock_thread(), {"tenant": run["tenant"], "thread_id": run["thread_id"]})
        await self._end(attempt, status, [lock, _of(run, end)], 1, *more)

    async def _finish_and_go_on(
        self, attempt: Attempt, end: Step, writes: Sequence[Step], policy: GraphPolicy
    ) -> None:
        """Ends the attempt with success and goes on with the tenant's next run, all in one round trip.

        writes: what the graph has written and is not yet saved. Raises LeaseLost.
        """
        run, how = attempt.run, self._what_next(attempt.since)
        # The lane first, as whoever takes the run away holds it too before the run's row.
        lock = Step(lock_and_bind(), {"tenant": run["tenant"], "thread_id": run["thread_id"]})
        ending = [lock, *writes, _of(run, end)]
        # Before the claim, which reads the newest checkpoint of what it claims.
        pruning = _pruning(run, policy)
        steps = [*ending, *pruning, *self._claims.next_steps(run["tenant"], run["thread_id"], how)]
        ended_at, next_at = len(ending) - 1, len(ending) + len(pruning)
        with self._attempts.claiming_some():
            results, tries = await self._send(steps)
            if results is not None:
                attempt.following, bell = self._claims.following(
                    how, steps[next_at:], results[next_at:], attempt.since
                )
        if results is None or not results[ended_at]:
            await self._check_committed(attempt, "success", tries)
        self._herald.announce(run["id"], bell if results is not None else None)

    async def _end(
        self, attempt: Attempt, status: str, steps: list[Step], ended_at: int, *more: Step
    ) -> None:
        """`_finish` by these steps. ended_at: which of them ends the run."""
        run = attempt.run
        results, tries = await self._send([*steps, *more])
        ended = results[ended_at] if results is not None else []
        if not ended:
            await self._check_committed(attempt, status, tries)
        for rows in results[len(steps) :] if results is not None else []:
            _log_breaker(more[0], rows)
        self._herald.announce(
            None if status == "pending" else run["id"], next_bell(ended[0]) if ended else None
        )

    async def _send(self, steps: list[Step]) -> tuple[list[Rows] | None, int]:
        """The rows of the steps, None where a fence among them refused; and how often they were sent."""
        tries = 0

        async def send() -> list[Rows] | None:
            nonlocal tries
            tries += 1
            try:
                return await self._database.carry_out(_rows(steps))
            except psycopg.Error as error:
                if error.sqlstate != FENCED:
                    raise
                return None

        return await patiently(send), tries

    async def _check_committed(self, attempt: Attempt, status: str, tries: int) -> None:
        """Raises LeaseLost, unless a try that Postgres did not answer has ended the run as it was to be."""
        if tries == 1 or not await self._was_committed(attempt.run, status):
            raise attempt.lease.refuse("end")

    async def _was_committed(self, run: Row, status: str) -> bool:
        """Whether a try that Postgres did not answer took effect: the run stands as this attempt left it."""
        steps = [Step(_STANDING, {"run_id": run["id"]})]
        row = _first(await patiently(lambda: self._database.carry_out(_rows(steps))))
        return row is not None and (row["status"], row["attempt"]) == (status, run["attempt"])

    async def _count_refused(self, attempt: Attempt) -> None:
        """Writes down what was refused; a hint for people, so it is tried once."""
        refused, attempt.lease.refused = attempt.lease.refused, 0
        if not refused:
            return
        parameters = {"run": attempt.run["id"], "number": attempt.run["attempt"], "refused": refused}
        try:
            await self._database.carry_out(_rows([Step(count_fenced(), parameters)]))
        except Exception as error:
            _log.warning("run.refusals_not_counted", error=type(error).__name__)


def _of(run: Row, end: Step) -> Step:
    """The step that ends the run, for the attempt that has it."""
    return Step(end.statement, {**end.parameters, "run_id": run["id"], "attempt": run["attempt"]})


def _pruning(run: Row, policy: GraphPolicy) -> list[Step]:
    """What keeps the run's thread short, after the step that ends the run."""
    if policy.keep_checkpoints is None:
        return []
    where = {"tenant": run["tenant"], "thread_id": run["thread_id"]}
    parameters = {**where, "key": thread_key(**where), "keep": policy.keep_checkpoints}
    return [_of(run, Step(keep_newest(), parameters))]


def _rows(steps: list[Step]) -> Plan[list[Rows]]:
    """The plan of steps that need nothing of each other, in one round trip."""
    return (yield Batch(steps))


def failed_task(snapshot: StateSnapshot | None) -> str | None:
    """The id of the task whose error LangGraph saved."""
    tasks = () if snapshot is None else snapshot.tasks
    return next((task.id for task in tasks if task.error is not None), None)


def _first(results: list[Rows]) -> Row | None:
    """The row of the last step, if it gave one."""
    return results[-1][0] if results[-1] else None


def _log_breaker(step: Step, rows: Rows) -> None:
    if rows and rows[0].get("opened"):
        parameters = step.parameters
        _log.error(
            "breaker.opened",
            kind=parameters["kind"],
            name=parameters["name"],
            failures=rows[0]["failures"],
            seconds=parameters["cooldown"],
            reason=parameters["reason"],
        )
