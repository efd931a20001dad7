"""The errors that a user can mend: raised with one sentence that names the cause and the cure."""

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
    """An image is missing, does not decode, or has another size than its annotation says."""


class TrainingError(Exception):
    """A run cannot go on: the loss is no number, the disk is full, another worker has ended."""


class LimitError(Exception):
    """The evaluation's results are beyond TEST.LIMITS; one sentence, a line each, for every limit
    that is broken.
    """


def printable(text: str) -> str:
    """The text with what may steer a terminal, or cannot be printed, as Python's escapes."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _sentence(error: Exception) -> str:
    # A data loader's worker hands its error on with the whole traceback as the message:
    # the sentence is its last paragraph, behind the name of the class.
    text = str(error).strip()
    return printable(text.rsplit(f"{type(error).__name__}: ", 1)[-1])


class WithoutTraceback(logging.Filter):
    """Makes a logger put the sentence of a :class:`ConfigError`, :class:`DataError` or
    :class:`TrainingError` in place of its traceback. For Detectron2's training loop, which logs
    what it raises.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; keeps all."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (ConfigError, DataError, TrainingError)):
            record.msg, record.args = f"{record.getMessage()} {_sentence(error)}", ()
            record.exc_info = record.exc_text = None
        return True


@contextlib.contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """Turns a :class:`ConfigError`, :class:`DataError` or :class:`TrainingError` into one line on
    stderr and exit code 1, and a :class:`LimitError` into a line for each limit.

    For command-line programs, whose users gain nothing from a traceback. Library users get the
    exception itself. Ctrl-C ends with exit code 130, without a traceback too.
    """
    try:
        yield
    except (ConfigError, DataError, LimitError, TrainingError) as error:
        sys.exit(f"error: {_sentence(error)}")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
