"""What happens to a dead letter: replay, discard, restore, park; and how its lane is freed."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    Text,
    all_,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.sql import Executable

from threadmill.core.transitions.lane import (
    BELL_COLUMNS,
    bells,
    free_lane,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import (
    ACTIONS,
    GRAPHS,
    HELD,
    LETTERS,
    QUARANTINE_LOSSES,
    RUNS,
    THREADS,
    is_unfinished,
    rank_at,
    seconds,
    word,
)


def _acts_on_letter(*statuses: str) -> ColumnElement[bool]:
    return and_(
        LETTERS.c.id == bindparam("letter_id", type_=UUID(as_uuid=True)),
        LETTERS.c.status.in_([word(status) for status in statuses]),
    )


def _record_action(letter: CTE, action: str, facts: ColumnElement[Any] | None = None) -> CTE:
    """Keeps what was done, when and by whom. Parameters: by, and facts (a JSON object) unless given."""
    return (
        insert(ACTIONS)
        .from_select(
            ["letter_id", "tenant", "by", "action", "facts"],
            select(
                letter.c.id,
                letter.c.tenant,
                bindparam("by", type_=Text),
                word(action),
                bindparam("facts", type_=JSONB) if facts is None else facts,
            ),
        )
        .returning(ACTIONS.c.letter_id)
        .cte("recorded_action")
    )


@cache
def record_action() -> Executable:
    """Keeps what was done that is no transition of a dead letter: a note, a trial, a pause.

    Parameters: letter_id (None: about several), tenant, by, action, facts (a JSON object).
    """
    return insert(ACTIONS).values(
        letter_id=bindparam("letter_id", type_=UUID(as_uuid=True)),
        tenant=bindparam("tenant", type_=Text),
        by=bindparam("by", type_=Text),
        action=bindparam("action", type_=Text),
        facts=bindparam("facts", type_=JSONB),
    )


def thread_has_moved() -> ColumnElement[bool]:
    """A later run of the thread has started, or an earlier one was replayed since the letter's run failed.

    An earlier one that is being replayed goes first, so it counts before it has begun.
    """
    own, other = RUNS.alias("own"), RUNS.alias("other")
    return exists(
        select(other.c.id)
        .where(
            own.c.id == LETTERS.c.run_id,
            other.c.tenant == LETTERS.c.tenant,
            other.c.thread_id == LETTERS.c.thread_id,
            or_(
                and_(other.c.seq > LETTERS.c.seq, other.c.started_at.is_not(None)),
                and_(
                    other.c.seq < LETTERS.c.seq,
                    other.c.replays > 0,
                    func.coalesce(other.c.finished_at > own.c.finished_at, true()),
                ),
            ),
        )
        .correlate(LETTERS)
    )


def failed_node_is_gone() -> ColumnElement[bool]:
    """The graph, as it is served at present, has the node no more at which the run failed."""
    return exists(
        select(GRAPHS.c.name)
        .where(
            GRAPHS.c.name == LETTERS.c.graph,
            LETTERS.c.node.is_not(None),
            LETTERS.c.node != all_(GRAPHS.c.nodes),
            GRAPHS.c.nodes != literal_column("'{}'::text[]"),  # announced before nodes were
        )
        .correlate(LETTERS)
    )


def auto_mode() -> tuple[ColumnElement[str], ColumnElement[str]]:
    """What `auto` comes to for a dead letter, and why."""
    moved, gone = thread_has_moved(), failed_node_is_gone()
    mode = case((moved, word("append")), (gone, word("restart")), else_=word("resume"))
    why = case(
        (moved, literal_column("'the thread has moved on'", Text)),
        (gone, "the graph has no node " + LETTERS.c.node + " any more"),
        else_=literal_column("'the thread stands where the run failed'", Text),
    )
    return mode, why


@cache
def replay() -> Executable:
    """waiting | parked → replaying, and the runs back to pending at their own places.

    After `lock_threads`, and before `fork_thread`. A run's id stays, and it has one attempt: what follows a
    failure is the next replay. Returns the runs' bells, with letter_id and replay_mode.
    Parameters: letter_ids (each of another thread, as the replay of one decides upon the next), mode (auto,
    resume, restart or append), state_patch (JSON; None changes nothing), by, facts (what else is to be kept
    of the action, a JSON object). No row: the letter's status was another, it has no run, or it is to resume
    and its thread has moved on.
    """
    wanted = bindparam("mode", type_=Text)
    mode, why = auto_mode()
    letter = (
        update(LETTERS)
        .where(
            LETTERS.c.id == any_(bindparam("letter_ids", type_=ARRAY(UUID(as_uuid=True)))),
            LETTERS.c.status.in_([word("waiting"), word("parked")]),
            LETTERS.c.run_id.is_not(None),
            or_(wanted != "resume", ~thread_has_moved()),
        )
        .values(
            status=word("replaying"),
            replays=LETTERS.c.replays + 1,
            replay_mode=case((wanted == "auto", mode), else_=wanted),
            replay_why=case((wanted == "auto", why), else_=literal_column("'as asked'", Text)),
            replayed_at=func.now(),
            next_replay_at=null(),
            updated_at=func.now(),
        )
        .returning(
            LETTERS.c.id,
            LETTERS.c.tenant,
            LETTERS.c.thread_id,
            LETTERS.c.seq,
            LETTERS.c.run_id,
            LETTERS.c.replay_mode,
        )
        .cte("letter")
    )
    lifetime = (
        select(cast(GRAPHS.c.policy["deadline"].astext, Float))
        .where(GRAPHS.c.name == RUNS.c.graph)
        .correlate(RUNS)
        .scalar_subquery()
    )
    ended = (
        update(RUNS)
        .where(RUNS.c.id == letter.c.run_id, RUNS.c.status.in_([word("error"), word("timeout")]))
        .values(
            status=word("pending"),
            run_at=func.now(),
            rank=case((_is_first(letter), rank_at(func.now(), RUNS.c.priority))),
            finished_at=null(),
            error=null(),
            deadline=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lifetime),
            worker_id=null(),
            dispatched_at=null(),
            failures=RUNS.c.max_attempts - 1,
            throttled=0,
            replays=RUNS.c.replays + 1,
            replay_mode=letter.c.replay_mode,
            state_patch=bindparam("state_patch", type_=JSON(none_as_null=True)),
            # What was buried for the workers that it cost goes on alone, and the next loss buries it again.
            worker_losses=func.least(RUNS.c.worker_losses, QUARANTINE_LOSSES),
        )
        .returning(*BELL_COLUMNS, letter.c.id.label("letter_id"), letter.c.replay_mode)
        .cte("replayed")
    )
    thread = update_thread(ended, status=word("busy"))
    facts = bindparam("facts", type_=JSONB).concat(
        func.jsonb_strip_nulls(
            func.jsonb_build_object(
                literal_column("'mode'"),
                letter.c.replay_mode,
                literal_column("'asked'"),
                func.nullif(wanted, letter.c.replay_mode),
            )
        )
    )
    return select(ended).add_cte(thread, _behind(letter), _record_action(letter, "replay", facts))


def _is_first(letter: CTE) -> ColumnElement[bool]:
    """The replayed run is its thread's next: none before it, no later one running, and nothing holds it."""
    other = RUNS.alias("other")
    return and_(
        ~exists(
            select(other.c.id)
            .where(
                other.c.tenant == letter.c.tenant,
                other.c.thread_id == letter.c.thread_id,
                is_unfinished(other.c.status),
                or_(other.c.seq < letter.c.seq, other.c.status == word("running")),
            )
            .correlate(letter)
        ),
        ~exists(
            select(HELD.c.seq)
            .where(
                HELD.c.tenant == letter.c.tenant,
                HELD.c.thread_id == letter.c.thread_id,
                HELD.c.seq < letter.c.seq,
            )
            .correlate(letter)
        ),
    )


def _behind(letter: CTE) -> CTE:
    """What came later on the thread is not next any more."""
    return (
        update(RUNS)
        .where(
            RUNS.c.tenant == letter.c.tenant,
            RUNS.c.thread_id == letter.c.thread_id,
            RUNS.c.seq > letter.c.seq,
            RUNS.c.rank.is_not(None),
            is_unfinished(RUNS.c.status),
        )
        .values(rank=null())
        .returning(RUNS.c.id)
        .cte("behind")
    )


@cache
def discard() -> Executable:
    """waiting | parked → discarded, which frees a held lane. After `lock_thread`.

    Parameters: letter_id, by, facts. No row: the letter's status was another.
    """
    letter = (
        update(LETTERS)
        .where(_acts_on_letter("waiting", "parked"))
        .values(status=word("discarded"), next_replay_at=null(), updated_at=func.now())
        .returning(LETTERS.c.id, LETTERS.c.run_id, LETTERS.c.tenant, LETTERS.c.thread_id, LETTERS.c.seq)
        .cte("discarded_letter")
    )
    ended = _lane_of(letter)
    freed = free_lane(letter)
    following = next_of(ended)
    # While it was held, the thread showed an error; what was not held shows what it did.
    was_held = exists(select(freed.c.letter_id))
    thread = update_thread(
        ended,
        status=case((was_held, status_after(following, word("error"))), else_=THREADS.c.status),
    )
    return bells(thread, _record_action(letter, "discard"), rung=ring_for(following), ended=ended)


def _lane_of(letter: CTE) -> CTE:
    """The letters' runs, in the form in which `next_of` and `bells` take those that have ended."""
    return select(letter.c.run_id.label("id"), letter.c.tenant, letter.c.thread_id, letter.c.seq).cte("ended")


@cache
def let_go() -> Executable:
    """Frees a lane that was held for longer than its graph allows; the dead letter stays.

    After `lock_thread`. Parameter: letter_id. No row: it is not held for the letter any more, or its time has
    not come.
    """
    freed = _overdue_lane()
    letter = (
        select(LETTERS.c.id, LETTERS.c.run_id, LETTERS.c.tenant, LETTERS.c.thread_id, LETTERS.c.seq)
        .join(freed, freed.c.letter_id == LETTERS.c.id)
        .cte("letter")
    )
    ended = _lane_of(letter)
    following = next_of(ended)
    thread = update_thread(ended, status=status_after(following, word("error")))
    return bells(thread, rung=ring_for(following), ended=ended)


def _overdue_lane() -> CTE:
    return (
        delete(HELD)
        .where(
            HELD.c.letter_id == bindparam("letter_id", type_=UUID(as_uuid=True)),
            HELD.c.until <= func.now(),
        )
        .returning(HELD.c.letter_id)
        .cte("freed_lane")
    )


@cache
def lanes_held_too_long() -> Executable:
    """The lanes whose `hold_timeout` has passed: id (of the run), letter_id, tenant, thread_id.

    Parameter: limit.
    """
    return (
        select(LETTERS.c.run_id.label("id"), HELD.c.letter_id, HELD.c.tenant, HELD.c.thread_id)
        .join(LETTERS, LETTERS.c.id == HELD.c.letter_id)
        .where(HELD.c.until <= func.now())
        .order_by(HELD.c.until)
        .limit(bindparam("limit"))
    )


@cache
def park() -> Executable:
    """waiting → parked: a person has to decide. Parameters: letter_id, by, facts."""
    return _restand("waiting", "parked", "park")


@cache
def restore() -> Executable:
    """discarded → parked: given up too early. Its lane is not held again.

    Parameters: letter_id, by, facts.
    """
    return _restand("discarded", "parked", "restore")


def _restand(before: str, after: str, action: str) -> Executable:
    letter = (
        update(LETTERS)
        .where(_acts_on_letter(before))
        .values(status=word(after), next_replay_at=null(), updated_at=func.now())
        .returning(LETTERS.c.id, LETTERS.c.tenant)
        .cte("letter")
    )
    return select(letter.c.id).add_cte(_record_action(letter, action))


@cache
def edit_input() -> Executable:
    """Gives the run of a waiting or parked dead letter another input; the first one is kept.

    Parameters: letter_id, input (JSON), by, facts. No row: the letter's status was another, or it has no run.
    """
    run = RUNS.alias("run")
    letter = (
        update(LETTERS)
        .where(_acts_on_letter("waiting", "parked"), run.c.id == LETTERS.c.run_id)
        .values(original_input=func.coalesce(LETTERS.c.original_input, run.c.input), updated_at=func.now())
        .returning(LETTERS.c.id, LETTERS.c.tenant, LETTERS.c.run_id)
        .cte("letter")
    )
    edited = (
        update(RUNS)
        .where(RUNS.c.id == letter.c.run_id)
        .values(input=bindparam("input", type_=JSON(none_as_null=True)))
        .returning(RUNS.c.id)
        .cte("edited")
    )
    return select(letter.c.id).add_cte(edited, _record_action(letter, "edit"))


@cache
def schedule_replay() -> Executable:
    """Sets when a waiting dead letter is due. Parameters: letter_id, delay (seconds)."""
    return (
        update(LETTERS)
        .where(_acts_on_letter("waiting"))
        .values(next_replay_at=func.now() + seconds("delay"))
        .returning(LETTERS.c.id)
    )


@cache
def announce_new_version() -> Executable:
    """Has what failed permanently be tried once more where its graph has changed since. Returns how many.

    A letter that fails again is recorded with the graph's version of that day, so it waits for the next one.
    Parameter: limit.
    """
    changed = (
        select(LETTERS.c.id)
        .join(GRAPHS, GRAPHS.c.name == LETTERS.c.graph)
        .where(
            LETTERS.c.status == word("waiting"),
            LETTERS.c.next_replay_at.is_(null()),
            LETTERS.c.reason == word("permanent"),
            or_(
                GRAPHS.c.topology_hash != LETTERS.c.topology_hash,
                GRAPHS.c.version != LETTERS.c.graph_version,
            ),
        )
        .order_by(LETTERS.c.id)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True, of=LETTERS)
        .cte("changed")
    )
    return (
        update(LETTERS)
        .where(LETTERS.c.id == changed.c.id)
        .values(next_replay_at=func.now())
        .returning(LETTERS.c.id)
    )
