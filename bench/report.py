"""What was measured, as one JSON document and as one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.load import Load
from bench.row import Aim, Row, from_json, to_json

RESULTS = Path(__file__).parent / "results"
MARKS = {True: Text("met", "green"), False: Text("NOT MET", "bold red"), None: Text("")}


@dataclass
class Report:
    """at: when it was begun, as ISO 8601. machine: see machine.describe. load: of bench.load, as JSON.
    measured: what each section found, as JSON, by its name."""

    at: str
    machine: Mapping[str, Any]
    load: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, at: str, machine: Mapping[str, Any], load: Load) -> Report:
        return cls(at, machine, asdict(load))

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `write` has written."""
        values = json.loads(path.read_text())
        return cls(**{**values, "rows": [from_json(row) for row in values["rows"]]})

    def add(self, name: str, found: Any, rows: Sequence[Row]) -> None:
        self.measured[name] = json.loads(json.dumps(found, default=asdict))
        self.rows += rows

    def write(self, path: Path) -> None:
        values = {**vars(self), "rows": [to_json(row) for row in self.rows]}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")

    def table(self) -> RenderableType:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        made.add_column("", overflow="fold")
        made.add_column("Threadmill", justify="right", no_wrap=True)
        made.add_column("beside")
        made.add_column("", justify="right", no_wrap=True)
        made.add_column("ratio", justify="right", no_wrap=True)
        made.add_column("aim", no_wrap=True)
        made.add_column("", no_wrap=True)
        section = ""
        for row in self.rows:
            if row.section != section:
                section = row.section
                made.add_row(Text(f"\n{section}", "bold"))
            made.add_row(*_cells(row))
        return Group(Text("\n".join(self._setting())), made, Text(self._legend(), style="dim"))

    def _setting(self) -> Iterator[str]:
        hardware, versions = self.machine["machine"], self.machine["versions"]
        yield (
            f"{self.at}: {hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, "
            f"{hardware['system']}, data on {hardware['filesystem']}, load before {hardware['load_before']}"
        )
        yield ", ".join(f"{name} {found}" for name, found in versions.items())
        for key, title in (("postgres", "Postgres:"), ("redis", "Redis:"), ("threadmill", "Threadmill:")):
            yield f"{title} {', '.join(f'{name} {found}' for name, found in self.machine[key].items())}"
        yield (
            f"{self.load['rounds']} rounds of {self.load['turns']} turns on each of {self.load['threads']} "
            f"threads, {self.load['samples']} samples of latency in each"
        )

    def _legend(self) -> str:
        aimed = [row.met for row in self.rows if row.met is not None]
        met = f"{sum(aimed)} of {len(aimed)} aims are met. " if aimed else ""
        return (
            f"{met}Where there are rounds, a figure is their median, "
            "and a ratio the median of the rounds' ratios.\nNaive Celery has as many processes; the bare "
            "loop is LangGraph in one process, one run at a time. Latencies are of one worker each, in turns."
        )


def _cells(row: Row) -> tuple[str | Text, ...]:
    return (
        row.figure,
        f"{_number(row.value)} {row.unit}",
        row.against,
        "" if row.base is None else _number(row.base),
        "" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 0.1 else f"{row.ratio:.2f}",
        "" if row.aim is None else _aim(row.aim, row.unit),
        MARKS[row.met],
    )


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _aim(aim: Aim, unit: str) -> str:
    bound = f"1/{1 / aim.bound:.0f}" if aim.of_ratio and aim.bound < 0.4 else f"{aim.bound:,g}"
    shown = f"{'≥' if aim.at_least else '≤'} {bound} {'x' if aim.of_ratio else unit}".rstrip()
    return shown if aim.wanted is None else f"{shown}, {aim.wanted:g} x"
