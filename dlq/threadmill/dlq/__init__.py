"""Everything about what failed: the operator's desk and the replay worker."""

from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.desk import Desk
from threadmill.dlq.replay_worker import ReplayWorker

__all__ = ["DeadLetter", "Desk", "ReplayWorker"]
