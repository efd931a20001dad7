"""Errors that a user can fix. Messages are one sentence that names the cause and the fix."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

__all__ = [
    "ConfigError",
    "DataError",
    "ImageError",
    "LimitError",
    "StopTraining",
    "TrainingError",
    "WithoutTraceback",
    "exit_with_one_sentence",
    "printable",
]


class ConfigError(ValueError):
    """A config file, key or command-line value is wrong."""


class DataError(ValueError):
    """A dataset, an annotation or an image is missing or broken."""


class ImageError(DataError):
    """An image is missing, broken, too narrow or of the wrong kind, or differs in size from its
    annotation."""


class TrainingError(Exception):
    """A run cannot continue: NaN loss, full disk, lost worker."""


class StopTraining(Exception):
    """Ends the training loop before its last iteration; not an error."""


class LimitError(Exception):
    """Results exceed TEST.LIMITS; the message has one line for each broken limit."""


def printable(text: str) -> str:
    """Escapes characters that are not printable or could control a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _sentence(error: Exception) -> str:
    # The error of a data loading process has the traceback as its message; the sentence follows the
    # last name of the class.
    text = str(error).strip()
    return printable(text.rsplit(f"{type(error).__name__}: ", 1)[-1])


class WithoutTraceback(logging.Filter):
    """Logs the message of a :class:`ConfigError`, :class:`DataError` or :class:`TrainingError`
    instead of its traceback. For Detectron2's training loop, which logs what it raises.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; drops that of :class:`StopTraining`."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StopTraining):
            return False
        if isinstance(error, (ConfigError, DataError, TrainingError)):
            record.msg, record.args = f"{record.getMessage()} {_sentence(error)}", ()
            record.exc_info = record.exc_text = None
        return True


@contextlib.contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """For command-line programs: prints the message of a :class:`ConfigError`, :class:`DataError`,
    :class:`TrainingError` or :class:`LimitError` without a traceback, and exits with code 1.

    Ctrl-C exits with code 130.
    """
    try:
        yield
    except (ConfigError, DataError, LimitError, TrainingError) as error:
        raise SystemExit(f"error: {_sentence(error)}") from error
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
