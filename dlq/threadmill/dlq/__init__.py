"""Everything about what failed: the operator's desk and the replay worker."""

from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.desk import Desk
from threadmill.dlq.detail import HeldLane, LetterDetail
from threadmill.dlq.exchange import Imported
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.groups import Group
from threadmill.dlq.jobs import ReplayJob
from threadmill.dlq.pauses import Pause
from threadmill.dlq.preview import Preview
from threadmill.dlq.rates import Rate
from threadmill.dlq.replay_worker import ReplayWorker
from threadmill.dlq.scratch import Trial
from threadmill.dlq.stats import Stats
from threadmill.dlq.velocity import parse_rate

__all__ = [
    "DeadLetter",
    "Desk",
    "Group",
    "HeldLane",
    "Imported",
    "LetterDetail",
    "LetterFilter",
    "Pause",
    "Preview",
    "Rate",
    "ReplayJob",
    "ReplayWorker",
    "Stats",
    "Trial",
    "parse_rate",
]
