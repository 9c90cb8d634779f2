"""From where a look begins that comes soon after another."""

from __future__ import annotations

import datetime
import time

import pytest

from threadmill.core import floors
from threadmill.core.floors import BEGINNING, Floors, rest_after

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = AT + datetime.timedelta(seconds=5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_look_begins_where_the_last_has_found_something(clock: list[float]) -> None:
    known = Floors(0.5)
    assert known.of("acme") == BEGINNING

    known.learn("acme", BEGINNING, AT)
    assert (known.of("acme"), known.of("globex")) == (AT, BEGINNING)

    known.learn("acme", AT, LATER)
    known.learn("acme", AT, AT)  # another slot's, which was answered later
    assert known.of("acme") == LATER


def test_it_begins_at_the_beginning_again_though_looks_go_on(clock: list[float]) -> None:
    known = Floors(0.5)
    known.learn("acme", BEGINNING, AT)
    clock[0] += 0.4
    known.learn("acme", AT, LATER)

    clock[0] += 0.2
    assert known.of("acme") == BEGINNING
    known.learn("acme", LATER, LATER)  # it began before
    assert known.of("acme") == BEGINNING

    known.learn("acme", BEGINNING, AT)
    assert known.of("acme") == AT


def test_what_was_dear_to_find_is_remembered_for_longer(clock: list[float]) -> None:
    known = Floors(0.5)
    known.learn("acme", BEGINNING, AT, took=0.004)
    known.learn("globex", BEGINNING, AT, took=0.0001)
    clock[0] += 1.9

    assert (known.of("acme"), known.of("globex")) == (AT, BEGINNING)
    clock[0] += 0.2
    assert known.of("acme") == BEGINNING

    known.learn("acme", BEGINNING, AT, took=3600)
    clock[0] += 11
    assert known.of("acme") == BEGINNING


def test_who_has_looked_in_vain_waits_as_many_times_as_long() -> None:
    assert [rest_after(took) for took in (0.0, 0.01, 3600)] == [0.0, 0.2, 2.0]


def test_what_is_remembered_does_not_grow_without_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "_KEYS", 3)
    known = Floors(0.5)
    for number in range(4):
        known.learn(number, BEGINNING, AT)

    assert [known.of(number) for number in range(4)] == [BEGINNING] * 3 + [AT]
