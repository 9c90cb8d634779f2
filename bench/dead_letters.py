"""A million dead letters: how long a page of each filter, the groups and the figures take."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import psycopg

from bench.arena import LEDGER, Arena
from bench.load import Load
from bench.row import Row, at_most
from threadmill.core.database import connect
from threadmill.core.statement import Plan, carry_out
from threadmill.dlq.filter import LetterFilter, first_id
from threadmill.dlq.groups import list_groups
from threadmill.dlq.letters import count_letters, list_letters
from threadmill.dlq.stats import read_stats

SECTION = "dead letters"
FILTER, COUNT, GROUP, STATS = "a page of 20", "a count, up to 10,000", "a page of groups", "figures"
PAGE = 20

# Thirty days. Every second letter is t0's. The oldest 30 % are one outage: one node, exception, group and
# message, the words of which occur in no later letter. t0 has hardly any that is parked; g19 has none of t0.
FILL = """
    insert into threadmill.dead_letters (id, tenant, thread_id, seq, graph, reason, error, exception_type,
            exceptions, traceback, node, fingerprint, status, next_replay_at, created_at)
        select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7'
                || lpad(to_hex(n %% 4096), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid,
            case when n %% 2 = 0 then 't0' else 't' || n %% 1000 end, 'th' || n / 4, n %% 4 + 1,
            case when n %% 10 < 6 then 'g0' when n %% 10 = 9 and n %% 3 = 0 then 'g19'
                else 'g' || n %% 9 + 1 end,
            reason, json_build_object('type', exception, 'message', message), exception,
            jsonb_build_array(jsonb_build_object('type', exception, 'module', 'app', 'message', message)),
            repeat('  File "app/nodes.py", line 10, in call' || chr(10), 12),
            case when n < outage then 'payments' when n %% 7 > 0 then 'node_' || n %% 25 end,
            case when n < outage then 'outage' else md5((n %% 10000)::text) end, status,
            case when status = 'waiting' and reason = 'exhausted' then at end, at
        from (
            select n, outage, now() - interval '30 d' + n * (interval '30 d' / total) as at,
                case when n < outage then 'httpx.ConnectTimeout' when n %% 5 = 0 then 'ValueError'
                    else 'app.errors.Failed' || n %% 12 end as exception,
                case when n < outage then 'the provider of payments failed to connect'
                    else 'order ' || n || ' failed' || case when n = total / 2 then ' with zebra' else '' end
                        || case when n %% 1000 = 1 then ' sometimes' else '' end end as message,
                case when n %% 3 = 0 then 'permanent' when n %% 11 = 0 then 'timeout' else 'exhausted' end
                    as reason,
                case when n < 300 and n %% 100 = 0 or n %% 20 = 1 then 'parked'
                    when n %% 10 < 7 then 'resolved' when n %% 10 = 7 then 'discarded'
                    else 'waiting' end as status
            from (values (%(total)s::int, %(total)s::int * 3 / 10)) as size(total, outage),
                generate_series(0, total - 1) as n
        ) as made
"""
GROUPS = """
    insert into threadmill.replay_groups (fingerprint, graph)
        select distinct on (fingerprint) fingerprint, graph from threadmill.dead_letters
"""


class Case(NamedTuple):
    """What is timed: of which kind it is, a label, and the plan."""

    kind: str
    label: str
    plan: Callable[[], Plan[Any]]


@dataclass(frozen=True)
class Timed:
    """Milliseconds: the median and the longest."""

    kind: str
    label: str
    median: float
    longest: float


def cases() -> list[Case]:
    """Pages of each filter and of the pairs that are asked for, counts, groups and figures."""
    now = datetime.datetime.now(datetime.UTC)
    old, outage = "t0", "httpx.ConnectTimeout"
    filters: dict[str, dict[str, Any]] = {
        "everything": {},
        "tenant, of half of them": {"tenant": "t0"},
        "tenant, of a thousandth": {"tenant": "t7"},
        "tenant, of none": {"tenant": "nobody"},
        "thread": {"thread_id": "th77"},
        "tenant, thread": {"tenant": "t0", "thread_id": "th77"},
        "graph": {"graph": "g0"},
        "status": {"status": "waiting"},
        "status, of none": {"status": "replaying"},
        "reason": {"reason": "timeout"},
        "group, of 30 %": {"group": "outage"},
        "node, of the oldest": {"node": "payments"},
        "exception, of the oldest": {"exception": outage},
        "time": {"since": now - datetime.timedelta(days=20), "until": now - datetime.timedelta(days=19)},
        "tenant, status: three, the oldest": {"tenant": old, "status": "parked"},
        "tenant, graph: none of many": {"tenant": old, "graph": "g19"},
        "graph, status": {"graph": "g0", "status": "parked"},
        "graph, node": {"graph": "g0", "node": "payments"},
        "graph, exception": {"graph": "g0", "exception": outage},
        "group, status": {"group": "outage", "status": "parked"},
        "group, tenant": {"group": "outage", "tenant": old},
        "tenant, node": {"tenant": old, "node": "payments"},
        "tenant, exception": {"tenant": old, "exception": outage},
        "node, exception": {"node": "payments", "exception": outage},
        "node, exception: none of many": {"node": "payments", "exception": "ValueError"},
        "status, time": {"status": "parked", "until": now - datetime.timedelta(days=25)},
        "tenant, graph, status, reason": {
            "tenant": old,
            "graph": "g0",
            "status": "parked",
            "reason": "timeout",
        },
        "thread, node, exception": {"thread_id": "th77", "node": "payments", "exception": outage},
        "text, of one": {"text": "zebra"},
        "text, of a thousandth": {"text": "sometimes"},
        "text, of all": {"text": "failed"},
        "text, of none": {"text": "giraffe"},
        "text, of the oldest 30 %": {"text": "provider"},
        "text, tenant": {"text": "zebra", "tenant": "t7"},
        "text, status": {"text": "sometimes", "status": "parked"},
        "text, tenant, node: of the oldest": {"text": "provider", "tenant": old, "node": "payments"},
    }
    pages = [
        Case(FILTER, label, partial(list_letters, LetterFilter(**values), PAGE))
        for label, values in filters.items()
    ]
    among_the_oldest = str(first_id(now - datetime.timedelta(days=20)))
    return [
        *pages,
        Case(COUNT, "graph", partial(count_letters, LetterFilter(graph="g0"))),
        Case(COUNT, "node of the oldest", partial(count_letters, LetterFilter(node="payments"))),
        Case(COUNT, "text of the oldest", partial(count_letters, LetterFilter(text="provider"))),
        Case(COUNT, "text of all", partial(count_letters, LetterFilter(text="failed"))),
        Case(GROUP, "all", list_groups),
        Case(GROUP, "of a graph", partial(list_groups, graph="g0")),
        Case(GROUP, "the last page of 10,000", partial(list_groups, after=among_the_oldest)),
        Case(GROUP, "of a tenant", partial(list_groups, tenant="t7")),
        Case(GROUP, "of the largest tenant", partial(list_groups, tenant="t0")),
        Case(STATS, "dlq stats", read_stats),
    ]


@contextmanager
def filled(ground: Arena, total: int) -> Iterator[str]:
    """The URL of a ledger with so many dead letters. Its indexes are made when it is full."""
    with ground.fresh_database(LEDGER) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            made = connection.execute(
                "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index "
                "where indrelid = 'threadmill.dead_letters'::regclass and not indisunique"
            ).fetchall()
            for name, _ in made:
                connection.execute(f"drop index {name}")
            connection.execute("set maintenance_work_mem = '512MB'")
            connection.execute(FILL, {"total": total})
            for _, definition in made:
                connection.execute(definition)
            connection.execute(GROUPS)
            connection.execute("vacuum analyze")
        yield url


def measure(ground: Arena, load: Load, tell: Callable[[str], None]) -> list[Timed]:
    """Each case's times, beside so many dead letters."""
    tell(f"{load.dead_letters:,} dead letters")
    with filled(ground, load.dead_letters) as url, connect(ground.settings(url)) as connection:
        connection.prepare_threshold = 0
        return [_time(connection, case, load.looks) for case in cases()]


def _time(connection: psycopg.Connection[Any], case: Case, looks: int) -> Timed:
    carry_out(connection, case.plan())  # prepares the statements
    found = []
    for _ in range(looks):
        begun = time.perf_counter()
        carry_out(connection, case.plan())
        found.append((time.perf_counter() - begun) * 1000)
    return Timed(case.kind, case.label, statistics.median(found), max(found))


def rows(found: Sequence[Timed]) -> list[Row]:
    """The slowest of each kind, and the filter in the middle."""
    made = []
    for kind in (FILTER, COUNT, GROUP, STATS):
        times = [timed for timed in found if timed.kind == kind]
        slowest = max(times, key=lambda timed: timed.median)
        label = slowest.label if kind == STATS else f"{kind}, the slowest of {len(times)}: {slowest.label}"
        aim = at_most(100) if kind == FILTER else None
        made.append(Row(SECTION, label, slowest.median, "ms", aim=aim))
        if kind == FILTER:
            middle = statistics.median(timed.median for timed in times)
            made.append(Row(SECTION, f"{kind}, the one in the middle", middle, "ms"))
    return made
