"""The curves of a result, each as PNG and as SVG. Drawn by matplotlib, which `make bench` installs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.fairness import WEIGHTS
from bench.growth import DELTA, STOCK_SAVER
from bench.harness import BARE_LOOP, MILL, NAIVE
from bench.sections import Name

STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#6b7280",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": "#374151",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "white",
    # Text stays text, and the same figures give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "threadmill",
}
SIZE = (10, 4.4)  # inches
COLOURS = {MILL: "#1d4ed8", NAIVE: "#ea7317", BARE_LOOP: "#8b929e", STOCK_SAVER: "#8b929e"}
PERCENTS = (50.0, 90.0, 99.0, 99.9)

Measured = Any  # a section's JSON
Line = tuple[str, Sequence[float], dict[str, Any]]  # a label, samples, and how it is drawn


def draw(measured: Mapping[str, Measured], folder: Path) -> list[Path]:
    """The files of all curves for which something was measured."""
    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name, (section, chart) in CHARTS.items():
            if section not in measured:
                continue
            figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE, layout="constrained")
            chart(measured[section], figure, left, right)
            # Below, where no curve can run into it; each label once, though both sides have it.
            shown: dict[str, Any] = {}
            for axes in (left, right):
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                    shown.setdefault(label, handle)
            figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(len(shown), 3))
            for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
                paths.append(folder / f"{name}{suffix}")
                figure.savefig(paths[-1], dpi=144, metadata=metadata)
            pyplot.close(figure)
    return paths


def throughput(points: Measured, figure: Figure, left: Axes, right: Axes) -> None:
    by_process = {
        name: sorted((p["processes"], p["runs_per_second"]) for p in points if _is(p, name))
        for name in (NAIVE, MILL)
    }
    at_once = sorted((p["at_once"], p["runs_per_second"]) for p in points if p["at_once"] is not None)
    for name, found in by_process.items():
        left.plot(*zip(*found, strict=True), "o-", color=COLOURS[name], label=name)
    right.plot(*zip(*at_once, strict=True), "o-", color=COLOURS[MILL], label=MILL)
    for axes, found, label in (
        (left, by_process[MILL], "worker processes"),
        (right, at_once, "runs at once in one process (concurrency)"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks([x for x, _ in found], [str(x) for x, _ in found])
        axes.minorticks_off()
        axes.set_xlabel(label)
    highest = max(p["runs_per_second"] for p in points)
    for axes in (left, right):
        axes.set_ylim(0, highest * 1.1)
    left.set_ylabel("runs a second")
    left.set_title("over worker processes")
    right.set_title("over what one process runs at once")
    count, mill = max(by_process[MILL], key=lambda point: point[1])
    naive = dict(by_process[NAIVE])[count]
    figure.suptitle(
        f"With {count} worker {'process' if count == 1 else 'processes'}: {mill:.0f} runs a second, "
        f"{mill / naive:.2f} times those of naive Celery"
    )


def _is(point: Mapping[str, Any], name: str) -> bool:
    return bool(point["name"] == name and point["at_once"] is None and point["shards"] == 1)


def latency(rounds: Measured, figure: Figure, left: Axes, right: Axes) -> None:
    def samples(contestant: str, what: str) -> list[float]:
        return list(chain.from_iterable(played[contestant]["samples"][what] for played in rounds))

    def lines(what: str, *contestants: str) -> list[Line]:
        return [(name, samples(name, what), {"color": COLOURS[name]}) for name in contestants]

    pickup = lines("pickup", NAIVE, MILL)
    _percentiles(left, pickup)
    _percentiles(right, lines("latency", BARE_LOOP, NAIVE, MILL))
    left.set_title("enqueue to the first node")
    right.set_title("enqueue to finish")
    naive, mill = (_quantile(line[1], 0.5) for line in pickup)
    figure.suptitle(
        f"One run at a time: half of the first nodes start within {mill:.1f} ms, "
        f"within {naive:.1f} ms with naive Celery"
    )


def growth(found: Measured, figure: Figure, left: Axes, right: Axes) -> None:
    names = list(dict.fromkeys(one["name"] for one in found))
    styles = {STOCK_SAVER: ("o-", 5.0), DELTA: ("o-", 2.0)}
    for name in names:
        dashes = "--" if "durable" in name else ":" if "keep" in name else "-"
        marks, width = styles.get(name, (dashes, 2.0))
        ours = [one for one in found if one["name"] == name]
        turns = [one["turns"] for one in ours]
        look = {"color": COLOURS.get(name, COLOURS[MILL]), "linewidth": width, "label": name}
        left.plot(turns, [one["wal"] / 1e3 for one in ours], marks, **look)
        right.plot(turns, [one["size"] / 1e6 for one in ours], marks, **look)
    for axes, label in ((left, "kB"), (right, "MB")):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("turns of the thread, 1 kB each way")
        axes.set_ylabel(label)
    left.set_title("WAL written by a turn")
    right.set_title("the thread's checkpoints in the database")
    last = {one["name"]: one for one in found}
    less = last[STOCK_SAVER]["wal"] / last[DELTA]["wal"]
    figure.suptitle(
        f"At {last[DELTA]['turns']} turns, a DeltaChannel writes {less:,.0f} times less a turn than a list"
    )


def waits(found: Measured, figure: Figure, left: Axes, right: Axes) -> None:
    alone, beside = found["idle"], found["flooded"]
    _percentiles(
        left,
        [
            ("with the fleet to themselves", alone, {"color": COLOURS[MILL], "linestyle": "--"}),
            ("beside the flood", beside, {"color": COLOURS[MILL]}),
        ],
    )
    left.set_title("ten tenants' waits from enqueue to start")
    labels = [f"weight {weight}" for weight in WEIGHTS.values()]
    wanted = [weight / sum(WEIGHTS.values()) * 100 for weight in WEIGHTS.values()]
    had = [found["shares"][tenant] * 100 for tenant in WEIGHTS]
    right.bar(labels, had, color=COLOURS[MILL], width=0.5, label="share of the slots")
    for place, share in enumerate(wanted):
        right.hlines(share, place - 0.3, place + 0.3, color="black", label="share by weight")
    right.grid(axis="x", visible=False)
    right.set_title("three tenants, each with more than can run")
    right.set_ylabel("% of the slots")
    figure.suptitle(
        "Beside a flood of one tenant, half of the others' runs start within "
        f"{_quantile(beside, 0.5):.0f} ms, 99 % within {_quantile(beside, 0.99):.0f} ms"
    )


def _percentiles(axes: Axes, lines: Sequence[Line]) -> None:
    """Milliseconds over percentiles, each nine as wide as the one before; no further than samples go."""
    for label, seconds, look in lines:
        nines = [step / 40 for step in range(12, int(40 * min(3, math.log10(len(seconds)))) + 1)]
        axes.plot(nines, [_quantile(seconds, 1 - 10**-n) for n in nines], label=label, **look)
    axes.set_xticks([-math.log10(1 - p / 100) for p in PERCENTS], [f"{p:g} %" for p in PERCENTS])
    axes.set_xlabel("of the runs")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)


def _quantile(seconds: Sequence[float], share: float) -> float:
    """Milliseconds that this share of the samples does not exceed."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1] * 1e3


CHARTS: dict[str, tuple[str, Callable[[Measured, Figure, Axes, Axes], None]]] = {
    "throughput": (Name.SCALE_OUT, throughput),
    "latency": (Name.CONTESTANTS, latency),
    "growth": (Name.GROWTH, growth),
    "fairness": (Name.FAIRNESS, waits),
}
