"""The replay worker, with the test in the fleet's place: it decides what becomes of what is given back."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import structlog

from threadmill.core.errors import InvalidOption, NotReplayable
from threadmill.core.settings import Settings
from threadmill.dlq import Desk, ReplayWorker, parse_rate, replay_worker
from threadmill.dlq.velocity import Bucket
from threadmill.dlq.window import Window

BURY = """
    with thread as (
        insert into threads (tenant, thread_id, last_seq, status) values (%(tenant)s, %(thread)s, 1, 'error')
        on conflict (tenant, thread_id) do update set last_seq = threads.last_seq + 1
        returning last_seq
    ), run as (
        insert into runs (id, tenant, thread_id, seq, graph, status, finished_at, started_at)
        select %(id)s, %(tenant)s, %(thread)s, last_seq, %(graph)s, 'error', now(), now() from thread
    ), replay_group as (
        insert into replay_groups (fingerprint, graph) values (%(group)s, %(graph)s) on conflict do nothing
    )
    insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint,
            next_replay_at)
    select %(id)s, %(id)s, %(tenant)s, %(thread)s, last_seq, %(graph)s, %(reason)s, '{}', %(group)s,
            now() + make_interval(secs => %(due_in)s)
    from thread
"""


class Fleet:
    """The ledger's dead letters, and what the workers make of them."""

    def __init__(self, admin: Any) -> None:
        self.admin = admin
        self._lock = threading.Lock()  # a transaction on the connection is one thread's

    def bury(
        self,
        thread: str | None = None,
        *,
        tenant: str = "acme",
        group: str = "down",
        graph: str = "chat",
        reason: str = "exhausted",
        due_in: float | None = 0,
    ) -> uuid.UUID:
        """A dead letter that is due in so many seconds; None has no time."""
        letter = uuid.uuid4()
        names = {"tenant": tenant, "group": group, "graph": graph, "reason": reason, "due_in": due_in}
        self.admin.execute(BURY, {**names, "id": letter, "thread": thread or letter.hex})
        return letter

    def bury_many(self, number: int, **options: Any) -> list[uuid.UUID]:
        with self.admin.transaction():
            return [self.bury(**options) for _ in range(number)]

    def succeed(self, letters: Iterable[uuid.UUID]) -> None:
        self._end(letters, "resolved", "success")

    def fail(self, letters: Iterable[uuid.UUID], group: str | None = None, due_in: float = 0) -> None:
        """Their runs fail again, as their group has or as another."""
        self._end(letters, "waiting", "error", group, due_in)

    def _end(
        self,
        letters: Iterable[uuid.UUID],
        status: str,
        run_status: str,
        group: str | None = None,
        due_in: float | None = None,
    ) -> None:
        ids = list(letters)
        with self._lock, self.admin.transaction():
            self.admin.execute(
                "update dead_letters set status = %s, fingerprint = coalesce(%s, fingerprint), "
                "next_replay_at = now() + make_interval(secs => %s), updated_at = clock_timestamp() "
                "where status = 'replaying' and id = any(%s)",
                [status, group, due_in, ids],
            )
            self.admin.execute(
                "update runs set status = %s, finished_at = now() where status = 'pending' and id = any(%s)",
                [run_status, ids],
            )

    @property
    def under_way(self) -> list[uuid.UUID]:
        """What is being replayed, in the order in which it was given back."""
        with self._lock:
            rows = self._under_way()
        return [letter for (letter,) in rows]

    def _under_way(self) -> list[tuple[uuid.UUID]]:
        return self.admin.execute(
            "select letter_id from dead_letter_actions a join dead_letters l on l.id = a.letter_id "
            "where l.status = 'replaying' and a.action = 'replay' group by letter_id order by max(a.id)"
        ).fetchall()

    def group(self, name: str = "down") -> tuple[int, int, bool]:
        """Its window, its failed canaries, and whether it backs off."""
        row = self.admin.execute(
            'select "window", backoffs, coalesce(next_at > now(), false) from replay_groups '
            "where fingerprint = %s",
            [name],
        ).fetchone()
        return row[0], row[1], row[2]

    def end_back_off(self, name: str = "down") -> None:
        self.admin.execute("update replay_groups set next_at = now() where fingerprint = %s", [name])

    def statuses(self, group: str = "down") -> dict[str, int]:
        return dict(
            self.admin.execute(
                "select status, count(*) from dead_letters where fingerprint = %s group by 1", [group]
            ).fetchall()
        )

    def tenants(self, letters: Iterable[uuid.UUID]) -> list[str]:
        rows = self.admin.execute(
            "select tenant from dead_letters where id = any(%s) order by tenant", [list(letters)]
        ).fetchall()
        return [tenant for (tenant,) in rows]


@pytest.fixture
def fleet(admin: Any) -> Fleet:
    return Fleet(admin)


@pytest.fixture
def start_drain(settings: Settings) -> Iterator[Callable[..., ReplayWorker]]:
    """Replay workers whose rounds the test has them make, or lets run; they are stopped at its end."""
    workers: list[ReplayWorker] = []

    def start(*, rate: float | None = None, **overrides: Any) -> ReplayWorker:
        workers.append(ReplayWorker(settings.model_copy(update=overrides), rate=rate))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def drain(start_drain: Callable[..., ReplayWorker]) -> ReplayWorker:
    return start_drain(max_replays=3)


# ---------------------------------------------------------------------------------------------------
# The window


def test_a_canary_goes_first_and_then_twice_as_many_each_round(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(80)

    rounds = []
    for _ in range(6):
        drain.drain_once()
        assert drain.drain_once() == 0, "the window is full"
        rounds.append(len(fleet.under_way))
        fleet.succeed(fleet.under_way)

    assert rounds == [1, 2, 4, 8, 16, 32]
    assert fleet.statuses() == {"resolved": 63, "waiting": 17}


def test_a_window_that_is_not_used_does_not_widen(fleet: Fleet, drain: ReplayWorker) -> None:
    assert Window(8).widened(under_way=3, most=64) == Window(8)
    assert Window(8).widened(under_way=4, most=64) == Window(9)
    assert Window(64, 2, 3).widened(under_way=64, most=64) == Window(64)


def test_no_more_than_the_setting_is_replayed_at_once_in_all(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker]
) -> None:
    drains = [start_drain(replay_window=5) for _ in range(3)]
    for number in range(6):
        fleet.bury_many(20, group=f"g{number}")

    most = 0
    for _ in range(10):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda drain: drain.drain_once(), drains))
        most = max(most, len(fleet.under_way))
        assert len(fleet.under_way) <= 5
        fleet.succeed(fleet.under_way)

    assert most == 5


def test_a_failing_canary_backs_the_whole_group_off_and_costs_one_call(
    fleet: Fleet, drain: ReplayWorker
) -> None:
    fleet.bury_many(100)
    assert drain.drain_once() == 1
    fleet.fail(fleet.under_way)

    assert [drain.drain_once() for _ in range(3)] == [0, 0, 0]
    assert fleet.group() == (1, 1, True)
    assert fleet.statuses() == {"waiting": 100}

    fleet.end_back_off()
    assert drain.drain_once() == 1
    fleet.succeed(fleet.under_way)
    assert drain.drain_once() == 2
    assert fleet.group() == (2, 0, False)


def test_other_groups_go_on_while_one_backs_off(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(5)
    others = fleet.bury_many(5, group="other")
    assert drain.drain_once() == 2
    canary = next(letter for letter in fleet.under_way if letter not in others)
    fleet.fail([canary])
    fleet.succeed(fleet.under_way)

    assert drain.drain_once() == 2
    assert set(fleet.under_way) <= set(others)


def test_one_failure_halves_the_window(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(50)
    for _ in range(3):
        drain.drain_once()
        fleet.succeed(fleet.under_way)
    assert drain.drain_once() == 8

    fleet.fail(fleet.under_way[:1], due_in=60)

    assert drain.drain_once() == 0
    assert fleet.group() == (4, 0, False)
    fleet.succeed(fleet.under_way[:5])
    drain.drain_once()
    assert len(fleet.under_way) <= fleet.group()[0]


def test_an_outage_in_the_midst_of_it_ends_in_a_canary(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(50)
    for _ in range(3):
        drain.drain_once()
        fleet.succeed(fleet.under_way)
    drain.drain_once()

    fleet.fail(fleet.under_way, due_in=60)

    assert drain.drain_once() == 1
    assert fleet.group() == (1, 0, False), "what was sent before it was known is no canary"
    fleet.fail(fleet.under_way, due_in=60)
    assert drain.drain_once() == 0
    assert fleet.group() == (1, 1, True)


def test_what_fails_in_another_way_leaves_the_window_as_it_is(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(50)
    for _ in range(2):
        drain.drain_once()
        fleet.succeed(fleet.under_way)
    drain.drain_once()
    assert fleet.group() == (4, 0, False)

    fleet.fail(fleet.under_way[:2], group="another", due_in=60)

    assert drain.drain_once() == 2
    assert fleet.group() == (4, 0, False)


def test_a_canary_that_fails_in_another_way_has_the_group_wait_but_is_never_a_reason_to_park_it(
    fleet: Fleet, drain: ReplayWorker
) -> None:
    fleet.bury_many(10)
    for _ in range(2):  # one more, and the group is hopeless
        drain.drain_once()
        fleet.fail(fleet.under_way)
        drain.drain_once()
        fleet.end_back_off()
    for _ in range(4):
        assert drain.drain_once() == 1
        fleet.fail(fleet.under_way, group="another", due_in=60)
        assert drain.drain_once() == 0
        assert fleet.group() == (1, 2, True)
        fleet.end_back_off()

    assert fleet.statuses() == {"waiting": 6}
    assert drain.drain_once() == 1
    fleet.succeed(fleet.under_way)
    assert drain.drain_once() == 2


def test_canaries_that_fail_in_another_way_are_ever_further_apart(
    fleet: Fleet, drain: ReplayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_worker, "replay_delay", lambda _, replays: 30.0 * 2**replays)
    rests = []
    fleet.bury_many(10)
    for _ in range(3):
        with structlog.testing.capture_logs() as log:
            drain.drain_once()
            fleet.fail(fleet.under_way, group="another", due_in=60)
            drain.drain_once()
        rests += [entry["seconds"] for entry in log if entry["event"] == "replay.backs_off"]
        fleet.end_back_off()

    assert rests == [30, 60, 120]


def test_a_group_is_parked_after_too_many_canaries(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(20)
    fleet.bury(due_in=None)
    fleet.bury(group="other", due_in=60)
    for _ in range(3):
        assert drain.drain_once() == 1
        fleet.fail(fleet.under_way)
        assert drain.drain_once() == 0
        fleet.end_back_off()

    assert fleet.statuses() == {"parked": 20, "waiting": 1}, "what waits for a person waits"
    assert fleet.statuses("other") == {"waiting": 1}
    assert fleet.admin.execute(
        "select distinct by, action, facts ->> 'reason' from dead_letter_actions where action = 'park'"
    ).fetchall() == [("drain", "park", "3 canaries of its group have failed")]

    fleet.bury_many(2)
    assert drain.drain_once() == 1, "what comes later has its canary too"


def test_after_an_idle_time_it_begins_with_a_canary(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(7)
    for _ in range(3):
        drain.drain_once()
        fleet.succeed(fleet.under_way)
    assert drain.drain_once() == 0
    drain.drain_once()

    fleet.bury_many(10)

    assert drain.drain_once() == 1


# ---------------------------------------------------------------------------------------------------
# Order and what is left alone


def test_on_a_thread_one_goes_at_a_time_in_order(fleet: Fleet, drain: ReplayWorker) -> None:
    letters = [fleet.bury("t", group=f"g{number % 3}") for number in range(5)]

    for letter in letters:
        assert drain.drain_once() == 1
        assert fleet.under_way == [letter]
        assert drain.drain_once() == 0
        fleet.succeed([letter])


def test_a_letter_waits_for_an_earlier_one_that_is_not_due_yet(fleet: Fleet, drain: ReplayWorker) -> None:
    first = fleet.bury("t", due_in=60)
    fleet.bury("t")
    assert drain.drain_once() == 0

    fleet.admin.execute("update dead_letters set next_replay_at = null where id = %s", [first])

    assert drain.drain_once() == 1, "what waits for a person is not waited for"


def test_a_letter_behind_a_held_lane_waits(fleet: Fleet, drain: ReplayWorker) -> None:
    holding = fleet.bury("t", due_in=None)
    fleet.bury("t")
    fleet.admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) values ('acme', 't', 1, %s)", [holding]
    )
    assert drain.drain_once() == 0

    fleet.admin.execute("update dead_letters set next_replay_at = now() where id = %s", [holding])
    assert drain.drain_once() == 1
    assert fleet.under_way == [holding], "what holds the lane itself goes"


@pytest.mark.parametrize(("kind", "name"), [("group", "down"), ("graph", "chat"), ("tenant", "acme")])
def test_what_is_paused_is_left_alone_until_it_is_not(
    fleet: Fleet, drain: ReplayWorker, settings: Settings, kind: str, name: str
) -> None:
    fleet.bury_many(5)
    others = fleet.bury_many(2, tenant="other", graph="other", group="other")
    with Desk(settings) as desk:
        desk.pause(kind, name, "for a test")
        assert drain.drain_once() == 1
        assert set(fleet.under_way) <= set(others)

        desk.unpause(kind, name)
        assert drain.drain_once() == 1
        assert not set(fleet.under_way) <= set(others)


def test_a_pause_holds_what_is_in_full_flow(fleet: Fleet, drain: ReplayWorker, settings: Settings) -> None:
    fleet.bury_many(50)
    for _ in range(3):
        drain.drain_once()
        fleet.succeed(fleet.under_way)

    with Desk(settings) as desk:
        desk.pause("group", "down")
        assert drain.drain_once() == 0
        desk.unpause("group", "down")
    assert drain.drain_once() == 1


def test_a_group_waits_while_a_breaker_of_its_graph_is_open(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(5)
    fleet.bury_many(5, graph="other", group="other")
    fleet.admin.execute(
        "insert into breakers (kind, name, graphs, failures, open_until) "
        "values ('dependency', 'llm', '{chat}', 9, now() + interval '1 h')"
    )
    assert drain.drain_once() == 1
    assert fleet.statuses() == {"waiting": 5}

    fleet.admin.execute("update breakers set open_until = now()")

    assert drain.drain_once() == 1
    assert fleet.statuses() == {"waiting": 4, "replaying": 1}


def test_a_paused_tenants_letters_wait(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(5)
    fleet.admin.execute("insert into limits (kind, name, paused) values ('tenant', 'acme', true)")

    assert drain.drain_once() == 0


def test_what_needs_a_person_waits(fleet: Fleet, drain: ReplayWorker) -> None:
    fleet.bury_many(5, reason="permanent", due_in=None)
    fleet.bury_many(5, due_in=60)

    assert drain.drain_once() == 0


# ---------------------------------------------------------------------------------------------------
# Velocity and fairness


def test_the_drainers_own_rate_holds(fleet: Fleet, start_drain: Callable[..., ReplayWorker]) -> None:
    drain = start_drain(rate=50)
    fleet.bury_many(100)

    began = time.monotonic()
    given = run_until(80, [drain], fleet)

    assert given <= 50 * (time.monotonic() - began) + 25, "half a second's worth may go at once"


@pytest.mark.parametrize("kind", ["all", "graph", "tenant"])
def test_a_rate_in_the_ledger_holds_for_all_drainers_together(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker], settings: Settings, kind: str
) -> None:
    name = {"all": "all", "graph": "chat", "tenant": "acme"}[kind]
    drains = [start_drain() for _ in range(3)]
    for number in range(6):
        fleet.bury_many(100, group=f"g{number}")
    with Desk(settings) as desk:
        desk.set_rate(kind, name, 50)

    began = time.monotonic()
    given = run_until(80, drains, fleet)

    assert given <= 50 * (time.monotonic() - began) + 25


def run_until(enough: int, drains: list[ReplayWorker], fleet: Fleet) -> int:
    """How many were given back by rounds in quick succession, all of which succeed."""
    ends_at, given = time.monotonic() + 30, 0
    with ThreadPoolExecutor(len(drains)) as pool:
        while given < enough:
            assert time.monotonic() < ends_at
            given += sum(pool.map(lambda drain: drain.drain_once(), drains))
            fleet.succeed(fleet.under_way)
    return given


def test_a_tenants_rate_leaves_the_others_theirs(
    fleet: Fleet, drain: ReplayWorker, settings: Settings
) -> None:
    fleet.bury_many(50, tenant="slow")
    fleet.bury_many(50, tenant="quick")
    with Desk(settings) as desk:
        desk.set_rate("tenant", "slow", 0.01)

    for _ in range(8):
        drain.drain_once()
        fleet.succeed(fleet.under_way)

    resolved = fleet.admin.execute(
        "select tenant, count(*) from dead_letters where status = 'resolved' group by 1 order by 1"
    ).fetchall()
    assert resolved == [("quick", 50), ("slow", 1)]


def test_a_tenant_with_one_letter_is_not_behind_the_thousand_of_another(
    fleet: Fleet, drain: ReplayWorker
) -> None:
    fleet.bury_many(500, tenant="large")
    fleet.bury(tenant="small")
    fleet.bury(tenant="tiny")

    for _ in range(2):
        drain.drain_once()
        fleet.succeed(fleet.under_way)

    done = fleet.admin.execute(
        "select tenant, count(*) from dead_letters where status = 'resolved' group by 1 order by 1"
    ).fetchall()
    assert done == [("large", 1), ("small", 1), ("tiny", 1)]


def test_tenants_take_turns_also_one_by_one(fleet: Fleet, start_drain: Callable[..., ReplayWorker]) -> None:
    drain = start_drain(replay_window=1)
    for tenant in ("a", "b", "c"):
        fleet.bury_many(10, tenant=tenant)

    turns = []
    for _ in range(9):
        drain.drain_once()
        turns += fleet.tenants(fleet.under_way)
        fleet.succeed(fleet.under_way)

    assert turns == ["a", "b", "c"] * 3


@pytest.mark.parametrize("text", ["0", "0/s", "-1/s", "nan", "inf", "", "fast", "5/week", "/s"])
def test_a_rate_that_lets_nothing_through_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="rate"):
        parse_rate(text)


def test_a_replay_worker_without_velocity_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidOption, match="rate"):
        ReplayWorker(settings, rate=0)


def test_a_rate_is_read_in_seconds_minutes_and_hours() -> None:
    assert [parse_rate(text) for text in ("50/s", "5", "30/min", "1800/h", "0.5/s")] == [50, 5, 0.5, 0.5, 0.5]


def test_a_bucket_lets_half_a_second_through_at_once_and_one_at_least() -> None:
    now = [0.0]
    quick, slow = Bucket(20, lambda: now[0]), Bucket(0.5, lambda: now[0])
    assert (quick.allowed(50), slow.allowed(50)) == (10, 1)
    quick.spend(10)
    slow.spend(1)
    assert (quick.allowed(50), slow.allowed(50)) == (0, 0)
    assert (quick.next_in(), slow.next_in()) == (0.05, 2)
    now[0] = 0.25
    assert (quick.allowed(50), slow.allowed(50)) == (5, 0)
    now[0] = 2.0
    assert (quick.allowed(50), slow.allowed(50)) == (10, 1)


# ---------------------------------------------------------------------------------------------------
# Several of them


def test_a_group_is_one_drainers_until_its_lease_has_passed(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker]
) -> None:
    first, second = start_drain(), start_drain()
    fleet.bury_many(10)
    assert first.drain_once() == 1
    fleet.succeed(fleet.under_way)
    assert second.drain_once() == 0

    fleet.admin.execute("update replay_groups set drainer_until = now() - interval '1 s'")

    assert second.drain_once() == 1, "it begins with a canary"
    assert first.drain_once() == 0
    fleet.succeed(fleet.under_way)
    assert second.drain_once() == 2
    assert first.drain_once() == 0


def test_what_a_dead_drainer_has_under_way_is_counted_and_learnt_from(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker]
) -> None:
    first, second = start_drain(), start_drain()
    fleet.bury_many(20)
    for _ in range(2):
        first.drain_once()
        fleet.succeed(fleet.under_way)
    assert first.drain_once() == 4
    fleet.admin.execute("update replay_groups set drainer_until = now() - interval '1 s'")

    assert second.drain_once() == 0, "four are under way"
    fleet.succeed(fleet.under_way)
    assert second.drain_once() == 5


def test_one_that_stops_leaves_its_groups_to_the_next(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker]
) -> None:
    first, second = start_drain(replay_interval=0.02), start_drain()
    fleet.bury_many(10)
    thread = threading.Thread(target=first.run)
    thread.start()
    until(lambda: fleet.under_way)
    first.stop()
    thread.join(10)

    fleet.succeed(fleet.under_way)
    assert second.drain_once() == 1


def until(holds: Callable[[], Any], timeout: float = 15) -> None:
    ends_at = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.002)


def test_eight_drainers_and_two_operators_replay_each_letter_once(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker], settings: Settings
) -> None:
    letters = [
        letter
        for number in range(10)
        for letter in fleet.bury_many(20, group=f"g{number % 5}", tenant=f"t{number % 3}")
    ]
    drains = [start_drain(replay_interval=0.01) for _ in range(8)]
    threads = [threading.Thread(target=drain.run) for drain in drains]

    def operate(ids: list[uuid.UUID]) -> int:
        replayed = 0
        with Desk(settings) as desk:
            for letter in ids:
                with suppress(NotReplayable):
                    desk.replay(str(letter))
                    replayed += 1
        return replayed

    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(2) as pool:
        operators = pool.map(operate, [letters[::-1], letters[::-2]])
        ends_at = time.monotonic() + 60
        while sum(fleet.statuses(f"g{n}").get("resolved", 0) for n in range(5)) < len(letters):
            fleet.succeed(fleet.under_way)
            assert time.monotonic() < ends_at
        by_operators = sum(operators)
    for drain in drains:
        drain.stop()
    for thread in threads:
        thread.join(10)

    actions = fleet.admin.execute(
        "select letter_id, count(*) from dead_letter_actions where action = 'replay' group by 1"
    ).fetchall()
    assert dict(actions) == dict.fromkeys(letters, 1)
    assert fleet.admin.execute("select distinct replays from runs").fetchall() == [(1,)]
    by_drains = fleet.admin.execute("select count(*) from dead_letter_actions where by = 'drain'").fetchone()
    assert by_drains == (len(letters) - by_operators,)
    assert 0 < by_operators < len(letters), "both have had some"


# ---------------------------------------------------------------------------------------------------
# New versions


def test_a_new_version_makes_permanent_ones_due_once_as_canaries(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker], admin: Any
) -> None:
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, nodes, policy) "
        "values ('chat', '1', 'h1', '{}', '{}', '{}', '{}')"
    )
    letters = fleet.bury_many(4, reason="permanent", due_in=None)
    admin.execute("update dead_letters set graph_version = '1', topology_hash = 'h1'")
    assert start_drain().drain_once() == 0

    admin.execute("update graphs set version = '2'")
    drain = start_drain()
    assert drain.drain_once() == 1
    (canary,) = fleet.under_way
    fleet.fail([canary])
    admin.execute(
        "update dead_letters set next_replay_at = null, graph_version = '2' where id = %s", [canary]
    )
    assert drain.drain_once() == 0, "the group backs off"
    fleet.end_back_off()
    for number in (1, 2):
        drain.drain_once()
        assert len(fleet.under_way) == number
        fleet.succeed(fleet.under_way)

    assert set(letters) == {canary} | {
        letter for (letter,) in admin.execute("select id from dead_letters where status = 'resolved'")
    }
    assert start_drain().drain_once() == 0, "once"


def test_a_new_version_ends_the_back_off_of_what_it_makes_due(
    fleet: Fleet, drain: ReplayWorker, admin: Any
) -> None:
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, nodes, policy) "
        "values ('chat', '2', 'h1', '{}', '{}', '{}', '{}')"
    )
    fleet.bury(reason="permanent", due_in=None)
    admin.execute("update dead_letters set graph_version = '1', topology_hash = 'h1'")
    admin.execute("update replay_groups set backoffs = 7, next_at = now() + interval '1 h'")

    assert drain.drain_once() == 1


# ---------------------------------------------------------------------------------------------------
# The loop


def test_the_loop_reacts_at_once_while_something_is_under_way(
    fleet: Fleet, start_drain: Callable[..., ReplayWorker]
) -> None:
    drain = start_drain(replay_interval=1.0)
    fleet.bury_many(31)
    thread = threading.Thread(target=drain.run)
    thread.start()
    began = time.monotonic()
    until(lambda: fleet.succeed(fleet.under_way) or fleet.statuses() == {"resolved": 31})
    took = time.monotonic() - began
    drain.stop()
    thread.join(10)

    assert took < 1.0, "five rounds within one interval"
