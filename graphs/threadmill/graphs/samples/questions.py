"""The 300 questions that ship with the librarian: 30 conversations of 10 turns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Turn:
    """A question. modules: those that a right answer cites, no more and no fewer."""

    question: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """Questions of one person, in order; most of them follow up on those before."""

    title: str
    turns: tuple[Turn, ...]


@cache
def conversations() -> tuple[Conversation, ...]:
    """All conversations, always in the same order."""
    content = json.loads(files(__package__).joinpath("questions.json").read_text("utf-8"))
    return tuple(
        Conversation(
            title=conversation["title"],
            turns=tuple(Turn(turn["question"], tuple(turn["modules"])) for turn in conversation["turns"]),
        )
        for conversation in content
    )
