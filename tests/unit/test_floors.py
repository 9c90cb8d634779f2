"""From where a look begins that comes soon after another."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from threadmill.core import floors
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST, Floors, Looks

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


def test_what_is_remembered_does_not_grow_without_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "_KEYS", 3)
    known = Floors(0.5)
    for number in range(4):
        known.learn(number, BEGINNING, AT)

    assert [known.of(number) for number in range(4)] == [BEGINNING] * 3 + [AT]


def _seen(took: float, *, saw_all: bool = True) -> dict[str, Any]:
    last = {"last_graph": "g", "last_tenant": "t"}
    return {**last, "saw_all": saw_all, "floor": LATER, "since": AT, "took": took}


def test_after_a_dear_look_others_begin_where_it_has_found_something(clock: list[float]) -> None:
    looks = Looks()
    assert looks.begin() == FROM_THE_FIRST

    looks.learn(FROM_THE_FIRST, _seen(0.05))
    began = looks.begin()
    assert began == {**FROM_THE_FIRST, "floor": LATER, "since": AT}
    assert looks.rest == 0

    clock[0] += 0.9
    looks.learn(began, {**_seen(0.001), "floor": AT})  # does not hold any longer, nor other than it did
    assert looks.begin() == began
    clock[0] += 0.2
    assert looks.begin() == FROM_THE_FIRST


def test_what_it_has_found_is_not_relied_upon_for_long_however_dear(clock: list[float]) -> None:
    looks = Looks()
    looks.learn(FROM_THE_FIRST, _seen(60))
    clock[0] += 1.9
    assert looks.begin() != FROM_THE_FIRST
    clock[0] += 0.2
    assert looks.begin() == FROM_THE_FIRST


def test_who_cannot_begin_later_rests_as_many_times_as_long(clock: list[float]) -> None:
    looks = Looks()
    looks.learn(FROM_THE_FIRST, _seen(0.05))
    for took, rest in ((0.001, 0.02), (0.05, 1.0), (3600, 2.0)):
        looks.learn(looks.begin(), _seen(took))
        assert looks.rest == pytest.approx(rest)


def test_a_look_goes_on_where_the_last_did_not_see_all(clock: list[float]) -> None:
    looks = Looks()
    looks.learn(FROM_THE_FIRST, _seen(0.05))
    looks.learn(looks.begin(), _seen(0.01, saw_all=False))

    following = looks.begin()
    assert following == {**FROM_THE_FIRST, "after_graph": "g", "after_tenant": "t"}
    assert looks.rest == pytest.approx(0.2)

    looks.learn(following, _seen(0.01))  # has seen the rest
    assert looks.begin() == FROM_THE_FIRST
