"""The lines of the table that tell Threadmill beside the other contestants."""

from __future__ import annotations

from dataclasses import dataclass

from bench.harness import BARE, BARE_LOOP, MILL, NAIVE, Rounds, medians, ratio
from bench.row import Aim, Row, at_least, at_most, ratio_at_least, ratio_at_most


@dataclass(frozen=True)
class Line:
    """base: the figure of `against` with which Threadmill's is compared; None: the same. said: how that is
    called where the contestant's name would not do. against: None where nothing is like it."""

    section: str
    figure: str
    label: str
    unit: str
    against: str | None = NAIVE
    base: str | None = None
    said: str | None = None
    aim: Aim | None = None


THROUGHPUT, LATENCY, ENQUEUE = "throughput", "latency, one run at a time, one worker", "enqueue"
TURN_BY_TURN = f"{NAIVE}, turn by turn"

LINES = (
    Line(THROUGHPUT, "runs_per_second", "turn by turn", "runs/s", aim=ratio_at_least(1.5, wanted=2)),
    Line(THROUGHPUT, "runs_per_second", "turn by turn", "runs/s", BARE),
    Line(
        THROUGHPUT, "at_once_runs_per_second", "all enqueued at once", "runs/s",
        base="runs_per_second", said=TURN_BY_TURN,
    ),
    Line(THROUGHPUT, "worker_cpu_ms", "CPU a run, turn by turn: workers", "ms"),
    Line(THROUGHPUT, "postgres_cpu_ms", "  Postgres", "ms"),
    Line(THROUGHPUT, "redis_cpu_ms", "  Redis", "ms"),
    Line(THROUGHPUT, "cpu_ms", "  all three", "ms"),
    Line(
        THROUGHPUT, "at_once_worker_cpu_ms", "CPU a run, all at once: workers", "ms",
        base="worker_cpu_ms", said=TURN_BY_TURN,
    ),
    Line(
        THROUGHPUT, "at_once_postgres_cpu_ms", "  Postgres", "ms", base="postgres_cpu_ms", said=TURN_BY_TURN
    ),
    Line(THROUGHPUT, "at_once_cpu_ms", "  all three", "ms", base="cpu_ms", said=TURN_BY_TURN),
    Line(THROUGHPUT, "wal_kb", "WAL a run, turn by turn", "kB"),
    Line(THROUGHPUT, "rows_kept", "rows kept a run", ""),
    Line(THROUGHPUT, "peak_rss_mb", "workers, peak of resident memory", "MB"),
    Line(THROUGHPUT, "pss_mb", "workers, with shared pages once", "MB"),
    Line(LATENCY, "pickup_p50_ms", "enqueue to first node: p50", "ms", aim=ratio_at_most(1.3)),
    Line(LATENCY, "pickup_p99_ms", "  p99", "ms", aim=at_most(50)),
    Line(LATENCY, "event_p50_ms", "enqueue to first event of a stream: p50", "ms", None),
    Line(LATENCY, "event_p99_ms", "  p99", "ms", None),
    Line(LATENCY, "latency_p50_ms", "enqueue to finish: p50", "ms"),
    Line(LATENCY, "latency_p99_ms", "  p99", "ms"),
    Line(LATENCY, "latency_p50_ms", "  p50", "ms", BARE_LOOP),
    Line(LATENCY, "wait_p50_ms", "finishing commit to return of wait: p50", "ms", None, aim=at_most(5)),
    Line(LATENCY, "wait_p99_ms", "  p99", "ms", None, aim=at_most(5)),
    Line(
        ENQUEUE, "enqueue_per_second", "one by one, no worker", "runs/s",
        said=f"{NAIVE}, delay()", aim=ratio_at_least(0.5),
    ),
    Line(
        ENQUEUE, "enqueue_many_per_second", "enqueue_many, 1,000 on 200 threads", "runs/s",
        base="enqueue_per_second", said=f"{NAIVE}, delay()", aim=at_least(20_000),
    ),
    Line(
        ENQUEUE, "enqueue_many_wide_per_second", "enqueue_many, 1,000 on 1,000 threads", "runs/s",
        base="enqueue_per_second", said=f"{NAIVE}, delay()", aim=at_least(20_000),
    ),
    Line(ENQUEUE, "enqueue_p50_ms", "one call, idle workers: p50", "ms", said=f"{NAIVE}, delay()"),
    Line(ENQUEUE, "enqueue_p99_ms", "  p99", "ms", said=f"{NAIVE}, delay()"),
    Line(
        ENQUEUE, "enqueue_p50_ms", "  p50", "ms", MILL, base="commit_p50_ms", said="a bare insert and commit"
    ),
    Line(
        ENQUEUE, "enqueue_p99_ms", "  p99", "ms", MILL, base="commit_p99_ms", said="a bare insert and commit"
    ),
    Line(ENQUEUE, "beside_commit_p50_ms", "its own time beside the commit: p50", "ms", None),
    Line(ENQUEUE, "beside_commit_p99_ms", "  p99, the difference of both", "ms", None, aim=at_most(5)),
)  # fmt: skip


def rows(rounds: Rounds) -> list[Row]:
    """Medians of the rounds, and of their ratios."""
    middle = medians(rounds)
    return [_row(rounds, middle[MILL][line.figure], line) for line in LINES if line.figure in middle[MILL]]


def _row(rounds: Rounds, value: float, line: Line) -> Row:
    if line.against is None:
        return Row(line.section, line.label, value, line.unit, aim=line.aim)
    base = line.base or line.figure
    return Row(
        line.section,
        line.label,
        value,
        line.unit,
        line.said or line.against,
        medians(rounds)[line.against].get(base),
        ratio(rounds, line.figure, MILL, base, line.against),
        line.aim,
    )
