"""That histories can fail: the ledger is broken on purpose, in one way after the other, and each is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import and_, bindparam, false, func, literal, select
from tests.chaos.histories import move
from tests.chaos.histories.machine import make_up
from tests.chaos.histories.state import Broken
from tests.chaos.histories.world import Stage

from threadmill.core.transitions import (
    breaking,
    burying,
    cancelling,
    enqueue,
    fleet,
    lane,
    replaying,
    running,
    starting,
    terms,
)
from threadmill.producers import enqueue as producing
from threadmill.producers import queries
from threadmill.workers import burial, rescue

Break = Callable[[pytest.MonkeyPatch, Stage], None]

# After so many histories at the latest each of them has been found, whatever the seed.
PATIENCE = 300
MODULES = (breaking, burying, cancelling, enqueue, fleet, lane, replaying, running, starting)


def _with(module: Any, **names: Any) -> Break:
    """Puts something else in the place of what a module knows by these names."""

    def breaks(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)

    return breaks


def _fence(body: str) -> Break:
    """Puts another body into the fence."""

    def breaks(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
        stage.superuser.execute(
            "create or replace function fence(run uuid, holder integer) returns void language plpgsql as $$"
            f" declare held record; begin {body} end $$".encode()
        )

    return breaks


def _refuses(condition: str, lock: str = "for share") -> str:
    return (
        f"select status, attempt into held from threadmill.runs where id = run {lock};"
        f" if {condition} then raise exception using errcode = 'TM001'; end if;"
    )


def _held_by_whichever_attempt() -> Any:
    return and_(terms.RUNS.c.id == bindparam("run_id"), terms.RUNS.c.status == terms.word("running"))


def _no_lock(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    for module in (move, rescue, queries, burial):
        monkeypatch.setattr(module, "lock_thread", lambda: select(literal(1)))


def _losing_for_nothing(run: Any, retry: Any, *, lost: int, node: str | None) -> Any:
    return _real_requeue(run, retry, lost=0, node=node)


_real_requeue = rescue._requeue
_real_ring_for = lane.ring_for


def _ringing_for_none(following: Any) -> Any:
    return _real_ring_for(select(following).where(false()).cte("nobody"))


def _promoting_none(following: Any) -> Any:
    return select(following).where(false()).cte("promoted")


def _putting_none_back(letter: Any) -> Any:
    return select(letter).where(false()).cte("behind")


def _freeing_none(closed: Any) -> Any:
    held = terms.HELD
    return held.delete().where(false()).returning(held.c.letter_id).cte("freed_lane")


def _freeing_the_thread(closed: Any) -> Any:
    held, letters = terms.HELD, terms.LETTERS
    threads = select(letters.c.thread_id).where(letters.c.id.in_(select(closed.c.id)))
    return held.delete().where(held.c.thread_id.in_(threads)).returning(held.c.letter_id).cte("freed_lane")


BREAKS: dict[str, Break] = {
    "a claim does not look at the runs before": _with(running, earlier_unfinished=lambda run: false()),
    "a claim does not look at the run that is running": _with(running, another_running=lambda run: false()),
    "a claim does not look at a held lane": _with(running, is_held=lambda run: false()),
    "a claim does not look at breakers": _with(running, held_back_by_breaker=false),
    "a claim does not look at deadlines": _with(running, is_expired=false),
    "a claim does not look at paused tenants": _with(running, is_limited=false),
    "a claim lets in what must be alone": _with(running, runs_alone=false),
    "nobody takes a lane's lock": _no_lock,
    "an attempt is ended whichever it is": _with(running, held_run=_held_by_whichever_attempt),
    "a rescue forgets the loss": _with(rescue, _requeue=_losing_for_nothing),
    "a third loss is no dead letter": _with(rescue, QUARANTINE_LOSSES=3),
    "a cancel does not free the lane": _with(cancelling, free_lane=_freeing_none),
    "a cancel does not ring for the next": _with(cancelling, ring_for=_ringing_for_none),
    "a lane held for two is let go with the first": _with(running, free_lane=_freeing_the_thread),
    "what failed for good counts for what follows": _with(burial, set_aside=lambda: select(literal(1))),
    "a bell that was lost is never rung again": _with(
        starting, _RING=starting._RING.replace("make_interval(secs => :patience)", "make_interval(9)")
    ),
    "who takes does not see that a bell is on its way": _with(
        starting, _PICK_MANY=starting._PICK_MANY.replace("run.dispatched_at is null", "true")
    ),
    "a worker that beats is struck off": _with(fleet, seconds=lambda name: func.make_interval(0)),
    "a success leaves the next one where nobody finds it": _with(running, promote=_promoting_none),
    "a retry goes before what was replayed": _with(running, earlier_unfinished=lambda run: false()),
    "a replay does not put back what comes after it": _with(replaying, _behind=_putting_none_back),
    "what follows on a lane is found at once": _with(enqueue, is_unfinished=lambda status: false()),
    "what follows a request that was known is not found": _with(
        producing, rank_heads=lambda: select(literal(1))
    ),
    "a replay forgets what the run has cost": _with(replaying, QUARANTINE_LOSSES=0),
    "a success does not close the breaker": _with(breaking, delete=lambda table: _nothing_of(table)),
    "the fence lets everybody through": _fence(""),
    "the fence does not look at the attempt": _fence(_refuses("held.status is distinct from 'running'")),
    "the fence does not look at the status": _fence(_refuses("held.attempt is distinct from holder")),
    "the fence does not lock": _fence(
        _refuses("held.status is distinct from 'running' or held.attempt is distinct from holder", "")
    ),
}  # fmt: skip


def _nothing_of(table: Any) -> Any:
    return terms.BREAKERS.delete().where(false())


@pytest.fixture
def forgetful() -> Any:
    """The transitions are built once; a test that changes what they are made of has them built anew."""

    def forget() -> None:
        for module in MODULES:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    yield forget
    forget()


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_found(
    name: str, stage: Stage, forgetful: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--long", default=False):
        pytest.skip("a minute, and no test of the code but of the histories: with --long")
    with pytest.MonkeyPatch.context() as monkeypatch:
        forgetful()
        BREAKS[name](monkeypatch, stage)
        with pytest.raises(Broken) as found:
            for seed in range(PATIENCE):
                make_up(stage, seed, steps=50, shrink=False)
    print(f"\n{name}: found after {stage.tally.steps.total()} steps:", str(found.value).partition("\n")[0])
