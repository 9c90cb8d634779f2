"""The doctor's checks of what stands in the ledger: each takes the fleet's connection and changes nothing."""

from __future__ import annotations

from psycopg.rows import DictRow

from threadmill.cli.finding import Connection, Finding, Status, one_row, some
from threadmill.cli.output import span
from threadmill.core.transitions import QUARANTINE_LOSSES
from threadmill.core.transitions.terms import BREAKER_TRIALS

# So many dead letters are counted; an outage may leave a million.
MOST_COUNTED = 10_000


def find_workers(fleet: Connection, patience: float) -> Finding:
    """Who is alive, and whose runs are still to be rescued. patience: seconds of silence that mean lost."""
    workers = fleet.execute(
        "select host, pid, concurrency, extract(epoch from now() - heartbeat_at)::float8 as silent, "
        "(select count(*) from runs where worker_id = workers.id and status = 'running') as running "
        "from workers order by host, pid"
    ).fetchall()
    waiting, orphans = one_row(
        fleet,
        "select count(*) filter (where status = 'pending' and run_at <= now()) as waiting, count(*) filter "
        "(where status = 'running' and worker_id not in (select id from workers)) as orphans "
        "from runs where status in ('pending', 'running')",
    ).values()
    alive = [worker for worker in workers if worker["silent"] < patience]
    lost = [_lost(worker) for worker in workers if worker not in alive and worker["running"]]
    if orphans:
        lost.append(f"a worker that was struck off ({orphans} runs)")
    gone = f"; lost: {some(lost)}" if lost else ""
    if not alive:
        status: Status = "fail" if waiting or lost else "warn"
        detail = f"none is alive, {waiting} runs wait{gone}"
        advice = "start `threadmill worker`" + ("; it rescues the lost one's runs, too" if lost else "")
        return Finding("workers", status, detail, advice)
    detail = f"{len(alive)} alive: {some([_alive(worker) for worker in alive])}"
    if lost:
        return Finding(
            "workers",
            "warn",
            f"{detail}{gone}",
            "the leader gives its runs to others within seconds; if this stays, see `sweeper.` in the logs",
        )
    return Finding("workers", "ok", f"{detail}; {waiting} runs wait")


def _alive(worker: DictRow) -> str:
    return f"{worker['host']}:{worker['pid']} ({worker['running']} of {worker['concurrency']} running)"


def _lost(worker: DictRow) -> str:
    return f"{worker['host']}:{worker['pid']} ({worker['running']} runs, silent {span(worker['silent'])})"


def find_graphs(fleet: Connection) -> Finding:
    """What can be enqueued."""
    names = [row["name"] for row in fleet.execute("select name from graphs order by name")]
    if not names:
        return Finding(
            "graphs",
            "warn",
            "none is announced, so nothing can be enqueued",
            "start `threadmill worker` where langgraph.json is; `threadmill graphs check` says what it holds",
        )
    return Finding("graphs", "ok", f"announced: {some(names)}")


def find_breakers(fleet: Connection) -> Finding:
    """What is taken to be down: open breakers, and half-open ones for which runs wait."""
    breakers = fleet.execute(
        "select kind, name, graphs, reason, failures, "
        "extract(epoch from open_until - now())::float8 as open_for, "
        "extract(epoch from now() - opened_at)::float8 as opened, "
        "(select count(*) from runs where status = 'pending' and run_at <= now() and graph = any(graphs)) "
        "as waiting from breakers where open_until is not null order by open_until desc, kind, name"
    ).fetchall()
    found = [_breaker(row) for row in breakers]
    if any(row["open_for"] > 0 or row["waiting"] for row in breakers):
        return Finding(
            "breakers",
            "warn",
            "; ".join(found),
            "mend what is down; runs wait without spending attempts, and the first that succeeds closes the "
            "breaker",
        )
    return Finding("breakers", "ok", "; ".join(found) or "none is open")


def _breaker(row: DictRow) -> str:
    """One breaker: what it holds back, for how long, and why."""
    if row["open_for"] > 0:
        state = f"open for another {span(row['open_for'])}"
    else:
        state = f"half-open ({BREAKER_TRIALS} runs at a time are let through)"
    why = f"{row['failures']} failures in a row, at last {row['reason']}, {span(row['opened'])} ago"
    held = f"{row['waiting']} runs of {some(row['graphs'])} wait"
    return f"{row['kind']} {row['name']} is {state}; {held}; {why}"


def find_quarantine(fleet: Connection) -> Finding:
    """The runs that have cost workers and go on alone."""
    rows = fleet.execute(
        "select id, graph, worker_losses from runs where status in ('pending', 'running') "
        "and worker_losses >= %s order by id",
        [QUARANTINE_LOSSES],
    ).fetchall()
    if not rows:
        return Finding("quarantine", "ok", f"no run has cost {QUARANTINE_LOSSES} workers")
    names = some([f"{row['id']} ({row['graph']})" for row in rows])
    return Finding(
        "quarantine",
        "warn",
        f"{len(rows)} runs have cost {QUARANTINE_LOSSES} workers each and run alone: {names}",
        f"see `threadmill runs show {rows[0]['id']} --attempts`; one loss more makes it a dead letter",
    )


def find_dead_letters(fleet: Connection) -> Finding:
    """What failed for good, and whether anybody takes care of it."""
    row = one_row(fleet, _DEAD_LETTERS)
    parts = [f"{_counted(row['waiting'])} waiting", f"{_counted(row['parked'])} parked"]
    if row["alone"]:
        parts.append(f"{_counted(row['alone'])} of those that wait have no time and wait for a person")
    if row["overdue"] and not row["drainers"]:
        parts.append(f"{_counted(row['overdue'])} are overdue for replay")
        return Finding(
            "dead letters", "warn", "; ".join(parts), "start the replay worker, `threadmill dlq drain`"
        )
    if row["parked"] or row["alone"]:
        which = "--status parked" if row["parked"] else "--status waiting"
        return Finding(
            "dead letters",
            "warn",
            "; ".join(parts),
            f"see `threadmill dlq list {which}`, mend the cause, then replay or discard",
        )
    return Finding("dead letters", "ok", "; ".join(parts))


# What is paused, backed off or behind a breaker is due and yet not overdue: a replay worker leaves it alone.
_DEAD_LETTERS = f"""
select
    (select count(*) from (select from dead_letters where status = 'waiting' limit {MOST_COUNTED}) as w)
        as waiting,
    (select count(*) from (select from dead_letters where status = 'parked' limit {MOST_COUNTED}) as p)
        as parked,
    (select count(*) from (
        select from dead_letters where status = 'waiting' and next_replay_at is null limit {MOST_COUNTED}
    ) as a) as alone,
    (select count(distinct drainer) from replay_groups where drainer_until > now()) as drainers,
    (select count(*) from (
        select from dead_letters as letter left join replay_groups as drained using (fingerprint)
        where letter.status = 'waiting' and letter.next_replay_at < now() - interval '1 minute'
            and coalesce(drained.next_at <= now(), true)
            and not exists (
                select from replay_pauses as pause
                where (pause.kind = 'graph' and pause.name = letter.graph)
                    or (pause.kind = 'tenant' and pause.name = letter.tenant)
                    or (pause.kind = 'group' and pause.name = letter.fingerprint)
            )
            and not exists (select from breakers where letter.graph = any(graphs) and open_until > now())
        limit {MOST_COUNTED}
    ) as o) as overdue
"""  # noqa: S608 - the bound is a constant


def _counted(number: int) -> str:
    return f"{number} or more" if number == MOST_COUNTED else str(number)


def find_held_threads(fleet: Connection) -> Finding:
    """The lanes that a dead letter holds."""
    rows = fleet.execute(
        "select tenant, thread_id, extract(epoch from now() - min(since))::float8 as held from held_lanes "
        "group by tenant, thread_id order by min(since), tenant, thread_id limit %s",
        [MOST_COUNTED],
    ).fetchall()
    names = [f"{row['tenant']}/{row['thread_id']} ({span(row['held'])})" for row in rows]
    if names:
        return Finding(
            "held threads",
            "warn",
            f"{_counted(len(names))} held by a dead letter, the longest first: {some(names)}",
            "see `threadmill threads list --held`; replaying or discarding the dead letter lets them go",
        )
    return Finding("held threads", "ok", "none is held by a dead letter")
