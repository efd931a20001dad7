"""Training, evaluation and comparison of several detectors.

``plan`` reads what to compare, ``runs`` resolves the runs, ``completion`` trains and evaluates
them, ``results`` collects metrics, ``speed`` times the models, ``plots``, ``pictures``, ``tables``
and ``page`` build the report, and ``compare`` does all of this. ``audit`` needs no runs, but only
detections.
"""

from .audit import audit
from .compare import ReportOptions, compare
from .completion import RunFailed
from .plan import Entry, Plan, find_plan

__all__ = [
    "Entry",
    "Plan",
    "ReportOptions",
    "RunFailed",
    "audit",
    "compare",
    "find_plan",
]
