"""On which line of a JSON text each of its keys stands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

# The keys, and the indexes of lists, that lead to a value.
KeyPath: TypeAlias = tuple[str | int, ...]

# In JSON a string with a colon after it is a key, and every other string is a value. Strings are matched as
# a whole, so that nothing inside one is taken for structure; numbers and words are passed over.
_TOKEN = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[\[\]{},]')


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """The line of each key, from 1 on, by its path. The text must be valid JSON.

    Of a key that an object holds twice it is the later one, whose value Python's `json` keeps too.
    """
    lines: dict[KeyPath, int] = {}
    path: list[str | int] = []
    line, read_to = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", read_to, token.start())
        read_to = token.start()
        match token[0][0]:
            case "{":
                path.append("")
            case "[":
                path.append(0)
            case "}" | "]":
                path.pop()
            case "," if isinstance(path[-1], int):
                path[-1] += 1
            case '"' if token[2]:
                path[-1] = json.loads(token[1])
                lines[tuple(path)] = line
    return lines


def line_of(path: Sequence[str | int], lines: Mapping[KeyPath, int]) -> int | None:
    """The line of this key, or of the nearest around it that the text holds; None where it holds none."""
    for end in range(len(path), 0, -1):
        line = lines.get(tuple(path[:end]))
        if line is not None:
            return line
    return None
