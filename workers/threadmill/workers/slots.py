"""How many runs a process executes at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Slots:
    """So many at once; who waits for one gets it in the order in which they came. Belongs to the loop."""

    def __init__(self, limit: int, on_room: Callable[[], None] = lambda: None) -> None:
        """on_room: is called when there is room again; see `has_room`."""
        self._limit = limit
        self._on_room = on_room
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """How many could be taken without waiting."""
        return self._limit - self._taken

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether one more would find a slot, or be one of few that wait."""
        return self.free > 0 or len(self._waiting) < max(1, self._limit // 8)

    def take(self, number: int = 1) -> None:
        """Takes so many, which are free."""
        assert number <= self.free
        self._taken += number

    async def wait(self) -> None:
        """Returns with a slot taken."""
        if self.free > 0 and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was given one, and does not want it any more
            else:
                self._waiting.remove(turn)
                self._tell_room()
            raise

    def give_back(self, number: int = 1) -> None:
        """Gives so many back, to those who wait first."""
        if not number:
            return
        for _ in range(number):
            while self._waiting:
                turn = self._waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break
            else:
                self._taken -= 1
        self._tell_room()

    def _tell_room(self) -> None:
        if self.has_room:
            self._on_room()
