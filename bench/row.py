"""A line of the table: a figure, what it is compared with, and what the project aims at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Aim:
    """The bound of a row's value, or of its ratio. wanted: what would be better still, to be shown."""

    bound: float
    at_least: bool
    of_ratio: bool
    wanted: float | None = None

    def is_met_by(self, figure: float) -> bool:
        return figure >= self.bound if self.at_least else figure <= self.bound


def at_least(bound: float) -> Aim:
    return Aim(bound, at_least=True, of_ratio=False)


def at_most(bound: float) -> Aim:
    return Aim(bound, at_least=False, of_ratio=False)


def ratio_at_least(bound: float, wanted: float | None = None) -> Aim:
    return Aim(bound, at_least=True, of_ratio=True, wanted=wanted)


def ratio_at_most(bound: float) -> Aim:
    return Aim(bound, at_least=False, of_ratio=True)


@dataclass(frozen=True)
class Row:
    """base: the figure of `against`, which it is compared with. ratio: to that; where there are rounds, the
    median of the rounds' ratios. aim: None where there is none, or not for so small a load."""

    section: str
    figure: str
    value: float
    unit: str = ""
    against: str = ""
    base: float | None = None
    ratio: float | None = None
    aim: Aim | None = None

    @property
    def met(self) -> bool | None:
        """None where nothing is aimed at, or the ratio that is has no base."""
        if self.aim is None:
            return None
        figure = self.ratio if self.aim.of_ratio else self.value
        return None if figure is None else self.aim.is_met_by(figure)


def compared(
    section: str, figure: str, value: float, unit: str, against: str, base: float, aim: Aim | None = None
) -> Row:
    """A row whose ratio is that of the two figures."""
    return Row(section, figure, value, unit, against, base, value / base if base else None, aim)


def to_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "met": row.met}


def from_json(document: Mapping[str, Any]) -> Row:
    values = {name: value for name, value in document.items() if name != "met"}
    aim = values.pop("aim")
    return Row(**values, aim=aim and Aim(**aim))
