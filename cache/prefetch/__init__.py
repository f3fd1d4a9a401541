"""Filling tiers before anybody reads: what it would cost, doing it, proving it, and letting go.

    make_plan(cache, wanted, to=…)                 -> Plan      nothing is fetched for keeps
    Prefetch(cache, to=…, lease_s=…).run(wanted)   -> Receipt   fetch what is missing, hold it
    Prefetch(cache, to=…).check(wanted)            -> Receipt   the same receipt, without fetching
    free(cache, wanted)                            -> Freed     drop what is not pinned

`wanted` is an asynchronous iterator of `Wanted(path, version)`; where it comes from (a listing, a list file, a snapshot)
is not known here, and it is never held in memory.
"""

from .free import Freed, free
from .plan import Plan, make_plan
from .receipt import Missing, Receipt, TierPart
from .run import Prefetch, Progress
from .target import Wanted

__all__ = ["Freed", "Missing", "Plan", "Prefetch", "Progress", "Receipt", "TierPart", "Wanted", "free", "make_plan"]
