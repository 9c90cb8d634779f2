"""The figures as a table for people and as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.harness import BARE, BARE_LOOP, CONTESTANTS, NAIVE, Rounds, medians, ratio
from bench.load import Load

RESULTS = Path(__file__).parent / "results"


class Figure(NamedTuple):
    """A row. base: the figure of naive Celery and of bare LangGraph to which it is compared.

    bare: which of the bare contestants that is; None where it would be compared with nothing.
    """

    name: str
    label: str
    base: str
    bare: str | None = BARE


FIGURES = (
    Figure("runs_per_second", "runs/s, turn by turn", "runs_per_second"),
    Figure("worker_cpu_ms", "  CPU ms a run: workers", "worker_cpu_ms"),
    Figure("postgres_cpu_ms", "  CPU ms a run: Postgres", "postgres_cpu_ms"),
    Figure("redis_cpu_ms", "  CPU ms a run: Redis", "redis_cpu_ms", None),
    Figure("cpu_ms", "  CPU ms a run: all three", "cpu_ms"),
    Figure("at_once_runs_per_second", "runs/s, all enqueued at once", "runs_per_second"),
    Figure("at_once_worker_cpu_ms", "  CPU ms a run: workers", "worker_cpu_ms"),
    Figure("at_once_postgres_cpu_ms", "  CPU ms a run: Postgres", "postgres_cpu_ms"),
    Figure("at_once_redis_cpu_ms", "  CPU ms a run: Redis", "redis_cpu_ms", None),
    Figure("at_once_cpu_ms", "  CPU ms a run: all three", "cpu_ms"),
    Figure("enqueue_per_second", "enqueue, runs/s, one by one", "enqueue_per_second"),
    Figure("enqueue_many_per_second", "enqueue_many, runs/s, 1,000 on 200 threads", "enqueue_per_second"),
    Figure("enqueue_many_wide_per_second", "enqueue_many, runs/s, 1,000 on 1,000", "enqueue_per_second"),
    Figure("latency_p50_ms", "enqueue to finish, idle: p50 ms", "latency_p50_ms", BARE_LOOP),
    Figure("latency_p99_ms", "enqueue to finish, idle: p99 ms", "latency_p99_ms", BARE_LOOP),
    Figure("peak_rss_mb", "workers, peak of resident MB", "peak_rss_mb"),
    Figure("pss_mb", "workers, MB with shared pages once", "pss_mb"),
)


def table(rounds: Rounds, machine: Mapping[str, Any], load: Load) -> RenderableType:
    """Medians of the rounds; under each, its ratio to naive Celery (n) and to bare LangGraph (b)."""
    middle = medians(rounds)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    made.add_column("")
    for contestant in CONTESTANTS:
        made.add_column(contestant.name, justify="right")
    for figure in FIGURES:
        cells = [_cell(rounds, middle, figure, contestant.name) for contestant in CONTESTANTS]
        made.add_row(figure.label, *cells)
    return Group(Text(_setting(machine, load)), made, Text(_legend(), style="dim"))


def _cell(rounds: Rounds, middle: Mapping[str, Mapping[str, float]], figure: Figure, name: str) -> Text:
    value = middle[name].get(figure.name)
    if value is None:
        return Text("")
    bases = {"n": NAIVE, "b": figure.bare}
    ratios = {
        letter: ratio(rounds, figure.name, name, figure.base, base)
        for letter, base in bases.items()
        if base is not None and base != name
    }
    shown = "  ".join(f"{letter} {found:.2f}" for letter, found in ratios.items() if found is not None)
    return Text.assemble(_number(value), ("\n" + shown, "dim"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _setting(machine: Mapping[str, Any], load: Load) -> str:
    hardware, versions = machine["machine"], machine["versions"]
    packages = ", ".join(f"{name} {found}" for name, found in versions.items())
    services = [
        f"{title} {', '.join(f'{name} {found}' for name, found in machine[key].items())}"
        for key, title in (("postgres", "Postgres:"), ("redis", "Redis:"), ("threadmill", "Threadmill:"))
    ]
    return "\n".join(
        [
            f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, "
            f"{hardware['system']}, data on {hardware['filesystem']}, load before {hardware['load_before']}",
            packages,
            *services,
            f"{load.rounds} rounds of {load.turns} turns on each of {load.threads} threads, "
            f"{load.samples} samples of latency",
        ]
    )


def _legend() -> str:
    return (
        "n, b: ratio to naive Celery and to bare LangGraph (with as many processes; for latency the bare "
        "loop), the median over the rounds.\nenqueue_many and all at once are compared with naive Celery's "
        "delay() and turn by turn."
    )


def write(rounds: Rounds, machine: Mapping[str, Any], load: Load) -> Path:
    """Writes everything to a new file in bench/results/ and returns its path."""
    middle = medians(rounds)
    moment = datetime.datetime.now(datetime.UTC)
    document = {
        "at": moment.isoformat(timespec="seconds"),
        **machine,
        "load": asdict(load),
        "medians": middle,
        "ratios": {
            name: {
                figure.name: {
                    "naive": ratio(rounds, figure.name, name, figure.base, NAIVE),
                    "bare": figure.bare and ratio(rounds, figure.name, name, figure.base, figure.bare),
                }
                for figure in FIGURES
                if figure.name in found
            }
            for name, found in middle.items()
        },
        "rounds": rounds,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{moment:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path
