"""The resize without Pillow and Detectron2 against the one with them."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onenet_runtime import resize_bilinear, resized_shape
from PIL import Image

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


def check(image: np.ndarray, height: int, width: int) -> None:
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))
    result = resize_bilinear(image, height, width)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    tall = image.shape[0] - height > 2 * max(image.shape[1] - width, 0)
    if PILLOW_13 or not tall:
        np.testing.assert_array_equal(result, expected)
    else:  # the other order of passes: two roundings
        np.testing.assert_allclose(result.astype(int), expected, atol=1)


side = st.integers(1, 150)


@settings(max_examples=250, deadline=None)
@given(side, side, side, side, st.integers(0, 2**32 - 1), st.booleans())
def test_equals_pillow(h: int, w: int, new_h: int, new_w: int, seed: int, extreme: bool) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    if extreme:
        image = np.where(image > 127, 255, 0).astype(np.uint8)
    check(image, new_h, new_w)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((480, 640), (800, 1067)),
        ((1080, 810), (400, 300)),
        ((900, 300), (600, 200)),  # more than twice as high as wide: the height first
        ((901, 450), (600, 300)),
        ((60, 40), (40, 30)),  # the height loses just twice as much: the width first
        ((9000, 2), (1, 2)),  # thousands of taps
        ((3, 700), (8, 1333)),
        ((1, 1), (50, 1)),
    ],
)
def test_equals_pillow_at(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    check(image, *new)


def test_reversed_channels_and_crops() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    view = image[5:50:2, 3:70, ::-1]
    np.testing.assert_array_equal(
        resize_bilinear(view, 31, 90), resize_bilinear(view.copy(), 31, 90)
    )
    np.testing.assert_array_equal(resize_bilinear(view, *view.shape[:2]), view)


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(1, 2000))
@example(2, 5, 1, 100)  # 2.5 becomes 3
def test_shape_equals_detectron2(height: int, width: int, min_size: int, max_size: int) -> None:
    expected = ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    assert resized_shape(height, width, min_size, max_size) == expected


def test_shape_of_no_resize() -> None:
    assert resized_shape(37, 4000, 0, 100) == (37, 4000)
