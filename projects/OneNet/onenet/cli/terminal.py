"""What the terminal shows of a run's log."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

__all__ = ["short_log"]

# Where Detectron2 logs environment and config, and the model
_LOGGERS = ("detectron2", "detectron2.engine.defaults")


@contextlib.contextmanager
def short_log() -> Iterator[None]:
    """Keeps environment, config and model, hundreds of lines, in ``log.txt`` alone."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_divert)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_divert)


def _divert(record: logging.LogRecord) -> bool:
    """Hands a record to the log file in place of its logger; whether that is left to do."""
    is_model = record.name == _LOGGERS[1] and str(record.msg).startswith("Model:\n")
    if record.levelno > logging.INFO or not (record.name == _LOGGERS[0] or is_model):
        return True
    for handler in logging.getLogger(_LOGGERS[0]).handlers:
        if getattr(handler, "stream", None) is not sys.stdout:
            handler.handle(record)
    return False
