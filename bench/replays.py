"""The replay worker by itself: how fast it gives back what a dependency has failed, once that is back.

It is the real one, a process of its own. What it gives back is ended by workers that do nothing, as otherwise
the graphs would be what takes the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg

from bench import idle_worker
from bench.arena import LEDGER, Arena
from bench.child import child, wait_for_line
from bench.contestant import PATIENCE, Stalled, WrongState
from bench.load import Load
from bench.meter import Meter
from bench.mill import environment
from bench.row import Row, at_least
from threadmill.core.settings import Settings
from threadmill.dlq import Desk

SECTION = "replays"
GRAPHS = ("one", "two")
TENANTS = 5
A_THREAD = 4  # letters, one after the other
GROUP = "the dependency"
AIMED = 10_000  # letters, which the aim is of
LOOK_EVERY = 0.05
# Of what was resolved while the window was at its widest a rate is told if it is such a share of all.
ENOUGH = 0.2

REPLAY_WORKER = (sys.executable, "-m", "threadmill.cli.main", "dlq", "drain")
REPLAY_READY = "replay.ready"

# Two graphs called the same dependency, an hour ago, in a run for each turn of their threads. All failed in
# the one node and left the checkpoint that holds their input, and the error beside it. Chance had a say in
# when each came due, so a thread's later letters are often due before its earlier ones, and wait for them.
FILL = """
    with letter as materialized (
        select n, turn, 'tenant' || n %% %(tenants)s as tenant, 'thread' || n as thread_id,
            (array['one', 'two'])[1 + n / %(tenants)s %% 2] as graph, since + step as at,
            (lpad(to_hex((extract(epoch from since + step) * 1000)::bigint), 12, '0') || '7'
                || lpad(to_hex(turn), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid as id,
            '1f0' || lpad(to_hex(turn), 5, '0') || '-' || lpad(to_hex(n), 12, '0') as checkpoint_id
        from (values (now() - interval '1 hour')) as begun(since),
            generate_series(1, %(threads)s::int) as n,
            generate_series(1, %(turns)s::int) as turn,
            lateral (select (turn * interval '1 s' + n * interval '1 ms') as step) as stepped
    ),
    thread as (
        insert into threads (tenant, thread_id, status, last_seq, dead_until, next_nodes, created_at)
        select tenant, thread_id, 'error', max(turn), max(checkpoint_id), '{call}', min(at)
        from letter group by tenant, thread_id
    ),
    run as (
        insert into runs (id, tenant, thread_id, seq, graph, graph_version, input, status, attempt,
            max_attempts, failures, run_at, created_at, dispatched_at, started_at, finished_at, error,
            checkpoint_id)
        select id, tenant, thread_id, turn, graph, '1',
            json_build_object('messages', json_build_array('turn ' || turn || ' of ' || thread_id)), 'error',
            1, 1, 1, at, at, at, at, at, json_build_object('type', 'httpx.ConnectTimeout'), checkpoint_id
        from letter
    ),
    checkpoint as (
        insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, type, checkpoint, metadata)
        select tenant || ':' || thread_id, '', checkpoint_id, 'msgpack', '{"v": 4}',
            jsonb_build_object('step', -1, 'source', 'input', 'run_id', id)
        from letter
    ),
    error as (
        insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx,
            channel, type, blob, run_id)
        select tenant || ':' || thread_id, '', checkpoint_id, id::text, '', -1, '__error__', 'msgpack',
            'httpx.ConnectTimeout', id
        from letter
    ),
    replay_group as (insert into replay_groups (fingerprint) values (%(group)s))
    insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, graph_version, topology_hash, reason,
        error, exception_type, exceptions, traceback, node, next_nodes, checkpoint_id, fingerprint,
        next_replay_at, created_at, updated_at)
    select id, id, tenant, thread_id, turn, graph, '1', '1', 'exhausted',
        json_build_object('type', 'httpx.ConnectTimeout', 'message', 'the dependency failed to connect'),
        'httpx.ConnectTimeout',
        '[{"type": "ConnectTimeout", "module": "httpx", "message": "the dependency failed to connect"}]',
        repeat('  File "app/nodes.py", line 10, in call' || chr(10), 12), 'call', '{call}', checkpoint_id,
        %(group)s, at + random() * interval '30 s', at, at
    from letter
"""
ANNOUNCE = """
    insert into graphs (name, version, topology_hash, input_schema, channels, nodes, policy)
        select unnest(%s::text[]), '1', '1', '{}', '{}', '{call}', '{}'
"""
OPEN = "select exists (select from dead_letters where status in ('waiting', 'replaying'))"
WINDOW = """
    select extract(epoch from clock_timestamp())::float8 as at, "window" from replay_groups
        where fingerprint = %s
"""
RATES = """
    select count(*) / extract(epoch from max(updated_at) - min(replayed_at))::float8,
        count(*) filter (where updated_at between to_timestamp(%(widest)s) and last)::float8 / count(*),
        count(*) filter (where updated_at between to_timestamp(%(widest)s) and last)
            / nullif(extract(epoch from last - to_timestamp(%(widest)s)), 0)::float8
    from dead_letters, (select max(replayed_at) as last from dead_letters) as given group by last
"""
# By the times of commits: `replayed_at` and `updated_at` are when a transaction began, which may have been
# before it waited for the other.
CHECK = """
    with letter as materialized (
        select letter.*, run.status as run_status, run.replays as run_replays, run.attempt,
            action.times, action.given_back, pg_xact_commit_timestamp(run.xmin) as ended
        from dead_letters as letter join runs as run on run.id = letter.run_id
        left join (
            select letter_id, count(*) as times, max(pg_xact_commit_timestamp(xmin)) as given_back
            from dead_letter_actions where action = 'replay' group by letter_id
        ) as action on action.letter_id = letter.id
    )
    select count(*),
        count(*) filter (where status <> 'resolved' or run_status <> 'success'),
        count(*) filter (where replays <> 1 or run_replays <> 1 or attempt <> 2 or times is distinct from 1),
        count(*) filter (where given_back <= earlier)
    from (
        select *, max(ended) over (
            partition by tenant, thread_id order by seq rows between unbounded preceding and 1 preceding
        ) as earlier
        from letter
    ) as in_order
"""
# Sessions but the one that asks.
SESSIONS = """
    select pid from pg_stat_activity where datname = current_database() and backend_type = 'client backend'
        and pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Drained:
    """How so many letters were given back and resolved, with a replay_window of `most`.

    rate: letters resolved a second, from the first replay to the last end. widest: of the window, while there
    was something to give back; rate_at_widest: from when it was so to the last replay, None where that was
    too short. CPU in ms a letter: of the replay worker, of its sessions in Postgres, of Postgres in all, and
    of the workers that do nothing.
    """

    letters: int
    most: int
    rate: float
    widest: int
    rate_at_widest: float | None
    replay_cpu_ms: float
    sessions_cpu_ms: float
    postgres_cpu_ms: float
    idle_cpu_ms: float


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> list[Drained]:
    """Raises Stalled, WrongState and ChildFailed."""
    found = []
    for most in load.windows:
        tell(f"{load.replays:,} replays, {most} at once")
        with arena.fresh_database(LEDGER) as url:
            settings = arena.settings(url).model_copy(update={"replay_window": most})
            found.append(_drain(arena, settings, load.replays))
    return found


def fill(connection: psycopg.Connection[Any], letters: int) -> None:
    """So many letters of one group, and all that belongs to them."""
    connection.execute("select setseed(0.5)")
    size = {"threads": letters // A_THREAD, "turns": A_THREAD, "tenants": TENANTS, "group": GROUP}
    connection.execute(FILL, size)
    connection.execute(ANNOUNCE, [list(GRAPHS)])
    connection.execute("vacuum analyze")
    connection.execute("checkpoint")


def _drain(arena: Arena, settings: Settings, letters: int) -> Drained:
    log = arena.folder / "replays.log"
    log.write_text("")
    env = environment(settings)
    with (
        psycopg.connect(settings.database_url, autocommit=True) as connection,
        Desk(settings) as desk,
    ):
        connection.execute("set search_path to threadmill")
        fill(connection, letters)
        desk.pause("group", GROUP)
        argv = (sys.executable, "-m", "bench.idle_worker", *GRAPHS)
        with child(argv, log, env) as idle:
            wait_for_line(idle, log, idle_worker.READY)
            before = _sessions(connection)
            with child(REPLAY_WORKER, log, env) as replay:
                wait_for_line(replay, log, REPLAY_READY)
                sessions = [psutil.Process(pid) for pid in _sessions(connection) - before]
                with Meter(
                    worker=[psutil.Process(replay.pid)],
                    sessions=sessions,
                    postgres=[arena.postgres],
                    idle=[psutil.Process(idle.pid)],
                ) as meter:
                    desk.unpause("group", GROUP)
                    windows = _watch(connection)
        _check(connection, letters)
        widest = max(window for _, window in windows)
        at = next(at for at, window in windows if window == widest)
        row = connection.execute(RATES, {"widest": at}).fetchone()
        assert row is not None
        rate, share, rate_at_widest = row
    cpu = {name: seconds / letters * 1e3 for name, seconds in meter.cpu.items()}
    return Drained(
        letters=letters,
        most=settings.replay_window,
        rate=rate,
        widest=widest,
        rate_at_widest=rate_at_widest if share >= ENOUGH else None,
        replay_cpu_ms=cpu["worker"],
        sessions_cpu_ms=cpu["sessions"],
        postgres_cpu_ms=cpu["postgres"],
        idle_cpu_ms=cpu["idle"],
    )


def _sessions(connection: psycopg.Connection[Any]) -> set[int]:
    return {pid for (pid,) in connection.execute(SESSIONS)}


def _watch(connection: psycopg.Connection[Any]) -> list[tuple[float, int]]:
    """The group's window, with the database's clock, until no letter is open. Raises Stalled."""
    windows: list[tuple[float, int]] = []
    ends = time.monotonic() + 10 * PATIENCE
    while connection.execute(OPEN).fetchone() == (True,):
        windows += connection.execute(WINDOW, [GROUP]).fetchall()
        if time.monotonic() > ends:
            raise Stalled(f"letters are open after {10 * PATIENCE:g} s")
        time.sleep(LOOK_EVERY)
    return windows


def _check(connection: psycopg.Connection[Any], letters: int) -> None:
    """Raises WrongState unless each letter is resolved by its one replay, in the order of its thread."""
    row = connection.execute(CHECK).fetchone()
    if row != (letters, 0, 0, 0):
        names = ("letters", "not resolved", "not replayed just once", "before an earlier one of the thread")
        raise WrongState(f"of {letters} letters: {dict(zip(names, row or (), strict=False))}")


def rows(found: Sequence[Drained]) -> list[Row]:
    made = []
    for one in found:
        label = f"{one.letters:,} letters, window of {one.most}: resolved, the ramp included"
        aim = at_least(500) if one.letters >= AIMED else None
        made.append(Row(SECTION, label, one.rate, "letters/s", aim=aim))
        if one.rate_at_widest is not None:
            label = f"  since the window was at its widest, {one.widest}"
            made.append(Row(SECTION, label, one.rate_at_widest, "letters/s"))
        for name, value in (
            ("CPU a letter: replay worker", one.replay_cpu_ms),
            ("  its sessions in Postgres", one.sessions_cpu_ms),
            ("  Postgres, in all", one.postgres_cpu_ms),
            ("  workers that do nothing", one.idle_cpu_ms),
        ):
            made.append(Row(SECTION, f"  {name}", value, "ms"))
    return made
