"""What a process knows of its attempts."""

from __future__ import annotations

import asyncio
import uuid

from threadmill.workers.attempts import Attempts


async def test_a_drain_waits_for_the_claim_that_is_under_way() -> None:
    attempts = Attempts()
    with attempts.claiming(uuid.uuid4()):
        assert not await attempts.wait_until_idle(0), "its run may be ours already, and nobody would hold it"
        waiting = asyncio.create_task(attempts.wait_until_idle(5))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_drain_with_nothing_under_way_is_over_at_once() -> None:
    assert await Attempts().wait_until_idle(0)
