"""The errors that a user can mend: each one sentence that names the thing and the cure."""

__all__ = ["AnnotationsError", "ImageError", "ModelError", "first_line", "printable"]


class ImageError(ValueError):
    """An image or a video is missing, damaged or of the wrong kind."""


class ModelError(ValueError):
    """A file is no exported OneNet that this version can run, or not on this device."""


class AnnotationsError(ValueError):
    """A file of COCO annotations is missing or broken, or not that of the images or the model."""


def first_line(error: BaseException) -> str:
    """What a library says of its error, without the details that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def printable(text: str) -> str:
    """The text with what may steer a terminal, or cannot be printed, as Python's escapes.

    Names of files and classes come from others.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
