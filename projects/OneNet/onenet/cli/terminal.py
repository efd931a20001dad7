"""What the terminal shows of a run's log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ..engine.faults import log_file

__all__ = ["short_log"]

# Loggers and beginnings of Detectron2's messages
_LONG = {
    "detectron2": (
        "Environment info:",
        "Command line arguments:",
        "Contents of args.config_file",
        "Running with full config:",
    ),
    "detectron2.engine.defaults": ("Model:",),
}


@contextlib.contextmanager
def short_log() -> Iterator[None]:
    """Keeps environment, config and network, hundreds of lines, in ``log.txt`` alone."""
    for name in _LONG:
        logging.getLogger(name).addFilter(_divert)
    try:
        yield
    finally:
        for name in _LONG:
            logging.getLogger(name).removeFilter(_divert)


def _divert(record: logging.LogRecord) -> bool:
    """Writes a long message to the log file alone; returns whether its logger should handle it."""
    if not record.getMessage().startswith(_LONG[record.name]):
        return True
    for handler in logging.getLogger("detectron2").handlers:
        if log_file(handler) and record.levelno >= handler.level:
            handler.handle(record)
    return False
