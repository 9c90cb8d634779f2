"""The operator's desk: what it does with one dead letter, what it refuses, and what it keeps of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.integration.failures import Failures

from threadmill.core.errors import (
    DeadLetterNotFound,
    FleetOnly,
    InvalidInput,
    InvalidOption,
    InvalidTenant,
    NotReplayable,
    ThreadmillError,
)
from threadmill.core.settings import Settings
from threadmill.dlq import Desk, LetterFilter

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def failures(admin: Any) -> Failures:
    failures = Failures(admin)
    failures.announce()
    return failures


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


@pytest.fixture
def acme(settings: Settings) -> Iterator[Desk]:
    """A desk that is bound to a tenant."""
    with Desk(settings, tenant="acme") as desk:
        yield desk


# ---------------------------------------------------------------------------------------------------
# Replay, and which mode it takes


def test_a_replay_gives_the_run_back_and_says_what_was_chosen_and_why(desk: Desk, failures: Failures) -> None:
    letter_id = failures.fail()

    letter = desk.replay(letter_id, by="ada")

    assert (letter.status, letter.replays, letter.replay_mode) == ("replaying", 1, "resume")
    assert letter.replay_why == "the thread stands where the run failed"
    assert failures.run_of(letter_id, "status") == "pending"
    assert failures.actions(letter_id) == [("replay", "ada", {"mode": "resume", "asked": "auto"})]


@pytest.mark.parametrize("mode", ["auto", "resume", "restart", "append"])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_preview_says_exactly_what_a_replay_does(
    desk: Desk, failures: Failures, mode: str, moved: bool, gone: bool
) -> None:
    letter_id = failures.fail()
    if moved:
        failures.follow(started=True)
    if gone:
        failures.announce(nodes=("think",))
    before = failures.everything()

    preview = desk.preview(letter_id, mode)

    assert failures.everything() == before
    assert (preview.refusal is not None) == (mode == "resume" and (moved or gone))
    if preview.refusal is not None:
        with pytest.raises(NotReplayable, match="moved on" if moved else "no node answer"):
            desk.replay(letter_id, mode=mode)
        assert failures.everything() == before
        return
    letter = desk.replay(letter_id, mode=mode)
    assert (letter.replay_mode, letter.replay_why) == (preview.mode, preview.why)
    expected = {"auto": "append" if moved else "restart" if gone else "resume"}
    assert letter.replay_mode == expected.get(mode, mode)


def test_by_is_the_user_whose_process_it_is(
    desk: Desk, failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter_id = failures.fail()
    monkeypatch.setenv("LOGNAME", "grace")

    desk.park(letter_id)

    assert failures.actions(letter_id) == [("park", "grace", {})]


# ---------------------------------------------------------------------------------------------------
# The other actions


def test_every_action_is_kept_with_who_and_why(desk: Desk, failures: Failures) -> None:
    letter_id = failures.fail(hold=True)
    follower = failures.follow()

    desk.note(letter_id, "looked at it", by="ada")
    assert desk.park(letter_id, "not now", by="ada").status == "parked"
    assert desk.discard(letter_id, "a test", by="bob").status == "discarded"
    assert desk.restore(letter_id, "no test", by="ada").status == "parked"

    assert failures.actions(letter_id) == [
        ("note", "ada", {"text": "looked at it"}),
        ("park", "ada", {"reason": "not now"}),
        ("discard", "bob", {"reason": "a test"}),
        ("restore", "ada", {"reason": "no test"}),
    ]
    assert failures.everything()["held_lanes"][0] == 0, "discarding freed the lane"
    del follower


def test_what_could_not_be_delivered_can_be_discarded_and_restored_and_not_replayed(
    desk: Desk, failures: Failures
) -> None:
    letter_id = failures.undeliverable()

    with pytest.raises(NotReplayable, match="could not be delivered"):
        desk.replay(letter_id)
    with pytest.raises(NotReplayable, match="could not be delivered"):
        desk.edit(letter_id, input={"question": "?"})
    assert desk.discard(letter_id, "odd").status == "discarded"
    assert desk.restore(letter_id).status == "parked"


REFUSED = {
    "replay": ("replaying", "resolved", "discarded"),
    "edit": ("replaying", "resolved", "discarded"),
    "discard": ("replaying", "resolved", "discarded"),
    "park": ("replaying", "resolved", "discarded", "parked"),
    "restore": ("waiting", "replaying", "resolved", "parked"),
}


@pytest.mark.parametrize(
    ("action", "status"), [(action, status) for action, found in REFUSED.items() for status in found]
)
def test_what_is_refused_says_what_the_letter_is_now_and_changes_nothing(
    desk: Desk, failures: Failures, action: str, status: str
) -> None:
    letter_id = failures.fail(status=status)
    desk.note(letter_id, "seen", by="ada")
    before = failures.everything()

    with pytest.raises(NotReplayable, match=rf"is {status}; .*\(last: note by ada\)") as raised:
        getattr(desk, action)(letter_id, **({"patch": {"question": "?"}} if action == "edit" else {}))

    assert (raised.value.dead_letter_id, raised.value.status) == (letter_id, status)
    assert failures.everything() == before


@pytest.mark.parametrize("name", ["no-uuid", NOBODY])
def test_what_is_not_there_is_not_found(desk: Desk, failures: Failures, name: str) -> None:
    failures.fail()
    before = failures.everything()
    for action in (desk.get, desk.preview, desk.detail, desk.replay, desk.discard, desk.restore, desk.park):
        with pytest.raises(DeadLetterNotFound, match=name):
            action(name)
    with pytest.raises(DeadLetterNotFound):
        desk.edit(name, patch={"question": "?"})
    with pytest.raises(DeadLetterNotFound):
        desk.note(name, "hm")
    assert failures.everything() == before


Wrong = Callable[[Desk, str], object]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda desk, key: desk.replay(key, mode="rewind"), InvalidOption),
        (lambda desk, key: desk.replay(key, mode="scratch"), InvalidOption),
        (lambda desk, key: desk.preview(key, "rewind"), InvalidOption),
        (lambda desk, key: desk.note(key, ""), InvalidOption),
        (lambda desk, key: desk.note(key, "x" * 10_001), InvalidOption),
        (lambda desk, key: desk.note(key, "nul \x00"), InvalidInput),
        (lambda desk, key: desk.park(key, " "), InvalidOption),
        (lambda desk, key: desk.discard(key, "\ud800"), InvalidInput),
        (lambda desk, key: desk.edit(key), InvalidOption),
        (lambda desk, key: desk.edit(key, input={"question": "?"}, patch={}), InvalidOption),
        (lambda desk, _: desk.pause("planet", "mars"), InvalidOption),
        (lambda desk, _: desk.pause("tenant", "a b"), InvalidTenant),
        (lambda desk, _: desk.pause("group", ""), InvalidOption),
        (lambda desk, _: desk.unpause("planet", "mars"), InvalidOption),
        (lambda desk, _: desk.set_rate("all", "all", 0), InvalidOption),
        (lambda desk, _: desk.set_rate("all", "all", -1), InvalidOption),
        (lambda desk, _: desk.set_rate("all", "all", float("nan")), InvalidOption),
        (lambda desk, _: desk.set_rate("all", "some", 1), InvalidOption),
        (lambda desk, _: desk.set_rate("group", "x", 1), InvalidOption),
    ],
)
def test_a_wrong_argument_has_its_named_error_and_leaves_everything_as_it_was(
    desk: Desk, failures: Failures, wrong: Wrong, error: type[ThreadmillError]
) -> None:
    letter_id = failures.fail()
    before = failures.everything()

    with pytest.raises(error):
        wrong(desk, letter_id)

    assert failures.everything() == before


# ---------------------------------------------------------------------------------------------------
# Two operators


def test_of_two_operators_one_wins_and_the_other_is_told(desk: Desk, failures: Failures) -> None:
    letters = [failures.fail(f"t{number}") for number in range(12)]
    for letter_id in letters:
        barrier = threading.Barrier(2)

        def act(name: str, letter_id: str = letter_id, barrier: threading.Barrier = barrier) -> str:
            barrier.wait(10)
            try:
                (desk.replay if name == "ada" else desk.discard)(letter_id, by=name)
            except NotReplayable as error:
                return str(error)
            return "done"

        with ThreadPoolExecutor(2) as pool:
            told = dict(zip(("ada", "bob"), pool.map(act, ("ada", "bob")), strict=True))

        ((action, winner, _),) = failures.actions(letter_id)
        loser = "bob" if winner == "ada" else "ada"
        status = {"replay": "replaying", "discard": "discarded"}[action]
        assert told[winner] == "done"
        assert f"is {status}; " in told[loser]
        assert f"(last: {action} by {winner})" in told[loser]
        assert failures.column(letter_id, "status") == status


# ---------------------------------------------------------------------------------------------------
# Pauses and rates


def test_pauses_are_kept_and_recorded(desk: Desk, failures: Failures) -> None:
    pause = desk.pause("graph", "chat", "the provider is down", by="ada")
    again = desk.pause("graph", "chat", "again", by="bob")
    desk.pause("tenant", "acme", by="ada")

    assert again == pause, "the first one stands"
    assert [(p.kind, p.name, p.by, p.reason) for p in desk.pauses()] == [
        ("graph", "chat", "ada", "the provider is down"),
        ("tenant", "acme", "ada", None),
    ]
    assert desk.unpause("graph", "chat", by="ada")
    assert not desk.unpause("graph", "chat", by="ada")
    assert [p.kind for p in desk.pauses()] == ["tenant"]
    assert [(action, by) for action, by, _ in failures.actions()] == [
        ("pause", "ada"),
        ("pause", "bob"),
        ("pause", "ada"),
        ("unpause", "ada"),
    ]


def test_rates_are_kept_and_recorded(desk: Desk, failures: Failures) -> None:
    desk.set_rate("all", "all", 50, by="ada")
    desk.set_rate("tenant", "acme", 0.5, by="ada")
    desk.set_rate("all", "all", 20, by="ada")

    assert [(r.kind, r.name, r.rate) for r in desk.rates()] == [
        ("all", "all", 20.0),
        ("tenant", "acme", 0.5),
    ]
    assert desk.set_rate("tenant", "acme", None, by="ada") is None
    assert [r.kind for r in desk.rates()] == ["all"]
    assert [facts["rate"] for _, _, facts in failures.actions()] == [50, 0.5, 20, None]


# ---------------------------------------------------------------------------------------------------
# A desk that is bound to a tenant


def test_a_desk_bound_to_a_tenant_sees_and_touches_its_own_letters_only(
    acme: Desk, failures: Failures
) -> None:
    own = failures.fail("t", hold=True)
    others = failures.fail("t", tenant="globex", hold=True)
    failures.undeliverable()
    before = failures.everything()

    assert [letter.id for letter in acme.list()] == [own]
    assert acme.list(LetterFilter(tenant="globex")) == []
    assert acme.count() == 1
    assert acme.get(own).id == own
    assert acme.detail(own).letter.id == own
    assert [lane.letter_id for lane in acme.held_lanes()] == [own]
    (group,) = acme.groups()
    assert (sum(group.counts.values()), group.tenants, group.sample.id) == (1, 1, own)
    assert acme.groups(tenant="globex") == []
    for action in (acme.get, acme.preview, acme.detail, acme.replay, acme.discard, acme.restore, acme.park):
        with pytest.raises(DeadLetterNotFound):
            action(others)
    with pytest.raises(DeadLetterNotFound):
        acme.edit(others, patch={"question": "?"})
    with pytest.raises(DeadLetterNotFound):
        acme.note(others, "mine?")
    with pytest.raises(DeadLetterNotFound):
        acme.start_job([own, others])
    assert failures.everything() == before
    assert acme.replay(own).status == "replaying"


def test_a_desk_bound_to_a_tenant_does_nothing_that_concerns_all(acme: Desk, failures: Failures) -> None:
    before = failures.everything()
    for forbidden in (
        lambda: acme.pause("graph", "chat"),
        lambda: acme.unpause("graph", "chat"),
        acme.pauses,
        acme.stats,
        lambda: acme.set_rate("all", "all", 1),
        acme.rates,
        lambda: acme.import_([]),
    ):
        with pytest.raises(FleetOnly, match="bound to acme"):
            forbidden()
    assert failures.everything() == before


def test_a_tenants_name_is_checked_at_the_door(settings: Settings) -> None:
    with pytest.raises(InvalidTenant):
        Desk(settings, tenant="a:b")
