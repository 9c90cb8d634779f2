"""The functions that an exception went through."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass, field
from typing import Any

from threadmill.graphs import Project


@dataclass(frozen=True, slots=True)
class Frame:
    """One function that was being run. file: as its project names it; line: 0 where it is not known;
    own: whether it is the graph's own code."""

    file: str
    line: int
    function: str
    own: bool
    _filename: str = field(repr=False)
    _globals: dict[str, Any] = field(repr=False)

    @property
    def code(self) -> str:
        """The line of source, without its indentation; empty where it cannot be read."""
        try:
            return linecache.getline(self._filename, self.line, self._globals).strip()
        except Exception:  # a loader of somebody's own
            return ""


def frames_of(error: BaseException, project: Project) -> list[Frame]:
    """The frames of the exception's traceback, the outermost first. Their variables are not read."""
    frames = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        file, own = project.place(code.co_filename)
        frames.append(Frame(file, line or 0, code.co_qualname, own, code.co_filename, frame.f_globals))
    return frames
