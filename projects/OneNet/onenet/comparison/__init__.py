"""Detectors side by side: trained alike, measured alike, and shown on one page.

``plan`` says what is compared, ``runs`` resolves it to runs, ``completion`` trains and evaluates
them, ``results`` gathers the numbers, ``speed`` times, ``plots``, ``pictures``, ``tables`` and
``page`` show; ``compare`` is all of it.
"""

from .compare import ReportOptions, compare
from .completion import RunFailed
from .plan import Entry, Plan, plan_from_paths, read_plan

__all__ = [
    "Entry",
    "Plan",
    "ReportOptions",
    "RunFailed",
    "compare",
    "plan_from_paths",
    "read_plan",
]
