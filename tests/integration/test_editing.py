"""Another input or state before a replay: what is taken, what is refused, and what is kept of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.failures import Failures

from threadmill.core.errors import InvalidInput, InvalidOption, NotReplayable, UnknownGraph
from threadmill.core.settings import Settings
from threadmill.dlq import Desk

FIRST = {"question": "why?", "style": {"tone": "dry", "length": 3}}


@pytest.fixture
def failures(admin: Any) -> Failures:
    failures = Failures(admin)
    failures.announce()
    return failures


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings.model_copy(update={"max_input_bytes": 1000})) as desk:
        yield desk


def test_a_patch_is_merged_into_the_input_and_the_first_one_is_kept(desk: Desk, failures: Failures) -> None:
    letter_id = failures.fail()

    letter = desk.edit(letter_id, patch={"question": "how?", "style": {"tone": None}}, by="ada")

    assert failures.run_of(letter_id, "input") == {"question": "how?", "style": {"length": 3}}
    assert (letter.status, letter.original_input) == ("waiting", FIRST)
    assert failures.actions(letter_id) == [
        ("edit", "ada", {"with": "patch", "keys": ["question", "style"]}),
    ], "the record has the names, not the values"

    again = desk.edit(letter_id, input={"question": "when?"}, by="ada")
    assert failures.run_of(letter_id, "input") == {"question": "when?"}
    assert again.original_input == FIRST, "the first one, not the one before"


@pytest.mark.parametrize("mode", ["restart", "append"])
def test_a_replay_edits_the_input_in_the_same_transaction(desk: Desk, failures: Failures, mode: str) -> None:
    letter_id = failures.fail()

    letter = desk.replay(letter_id, mode=mode, patch={"question": "how?"}, by="ada")

    assert (letter.status, letter.replay_mode, letter.original_input) == ("replaying", mode, FIRST)
    assert failures.run_of(letter_id, "input") == {**FIRST, "question": "how?"}
    assert failures.run_of(letter_id, "state_patch") is None
    assert [action for action, _, _ in failures.actions(letter_id)] == ["edit", "replay"]


@pytest.mark.parametrize("mode", ["resume", "auto"])
def test_a_replay_that_resumes_patches_the_state_and_leaves_the_input(
    desk: Desk, failures: Failures, mode: str
) -> None:
    letter_id = failures.fail()

    letter = desk.replay(letter_id, mode=mode, patch={"answer": "because", "style": None})

    assert (letter.replay_mode, letter.original_input) == ("resume", None)
    assert failures.run_of(letter_id, "state_patch") == {"answer": "because", "style": None}
    assert failures.run_of(letter_id, "input") == FIRST


def test_what_auto_comes_to_decides_what_is_edited(desk: Desk, failures: Failures) -> None:
    letter_id = failures.fail()
    failures.follow(started=True)

    letter = desk.replay(letter_id, input={"question": "how?"})

    assert letter.replay_mode == "append"
    assert failures.run_of(letter_id, "input") == {"question": "how?"}
    assert failures.run_of(letter_id, "state_patch") is None


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"patch": {"question": None}}, "input: 'question' is missing"),
        ({"patch": {"question": 3}}, "input.question: must be of type string"),
        ({"patch": [1]}, "input: must be of type object"),
        ({"input": {}}, "input: 'question' is missing"),
        ({"input": {"question": "x" * 2000}}, "limit is 1000"),
        ({"patch": {"style": {"tone": "x" * 980}}}, "limit is 1000"),
        ({"input": {"question": "\x00"}}, "holds NUL"),
        ({"patch": {"question": float("inf")}}, "no JSON number"),
    ],
)
@pytest.mark.parametrize("action", ["edit", "replay"])
def test_what_does_not_fit_the_schema_has_its_place_and_changes_nothing(
    desk: Desk, failures: Failures, action: str, given: dict[str, Any], place: str
) -> None:
    letter_id = failures.fail()
    before = failures.everything()

    with pytest.raises(InvalidInput, match=place):
        getattr(desk, action)(letter_id, **given, **({"mode": "append"} if action == "replay" else {}))

    assert failures.everything() == before


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"patch": {"colour": "red"}}, InvalidInput, "patch.colour: is no channel"),
        ({"patch": {}}, InvalidInput, "must be an object"),
        ({"patch": "x"}, InvalidInput, "must be an object"),
        ({"input": {"question": "how?"}}, InvalidOption, "past its input"),
        ({"input": {"question": "how?"}, "patch": {"answer": "x"}}, InvalidOption, "not both"),
    ],
)
def test_a_state_patch_that_does_not_fit_the_graph_is_refused(
    desk: Desk, failures: Failures, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    letter_id = failures.fail()
    before = failures.everything()

    with pytest.raises(error, match=words):
        desk.replay(letter_id, mode="resume", **given)

    assert failures.everything() == before


def test_a_graph_that_is_not_served_takes_no_input(desk: Desk, failures: Failures, admin: Any) -> None:
    letter_id = failures.fail()
    admin.execute("delete from graphs")
    before = failures.everything()

    with pytest.raises(UnknownGraph):
        desk.edit(letter_id, patch={"question": "how?"})

    assert failures.everything() == before


def test_a_run_that_was_given_a_command_has_no_input_to_edit(
    desk: Desk, failures: Failures, admin: Any
) -> None:
    letter_id = failures.fail()
    admin.execute("""update runs set input = null, command = '{"resume": "yes"}'""")
    before = failures.everything()

    with pytest.raises(InvalidOption, match="a command"):
        desk.edit(letter_id, patch={"question": "how?"})

    assert failures.everything() == before


def test_an_edit_before_a_replay_that_is_refused_is_not_made(desk: Desk, failures: Failures) -> None:
    letter_id = failures.fail(status="resolved")
    before = failures.everything()

    with pytest.raises(NotReplayable, match="is resolved"):
        desk.replay(letter_id, mode="append", patch={"question": "how?"})

    assert failures.everything() == before
