"""How much of a group is replayed at once: as TCP starts, a canary first, then twice as many each round."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Window:
    """size: how many may be replayed at once. backoffs: how many canaries have failed since one succeeded;
    strays: how many have failed in another way than their group."""

    size: int = 1
    backoffs: int = 0
    strays: int = 0

    def widened(self, under_way: int, most: int) -> Window:
        """After a success, when so many were under way; wider by one if that was half of it or more.

        A window that is not used proves nothing about a wider one (RFC 7661).
        """
        wider = self.size + 1 if 2 * under_way >= self.size else self.size
        return Window(min(wider, most))

    def halved(self) -> Window:
        """After a failure of one that was no canary."""
        return replace(self, size=max(self.size // 2, 1))

    def closed(self) -> Window:
        """After a canary that failed."""
        return replace(self, size=1, backoffs=self.backoffs + 1)

    def strayed(self) -> Window:
        """After a canary that failed in another way."""
        return replace(self, size=1, strays=self.strays + 1)

    def shut(self) -> Window:
        """After an idle time."""
        return replace(self, size=1)
