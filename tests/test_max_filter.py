"""3D max filtering: by hand on one channel."""

import torch
from torch import nn

from onenet.heads.max_filter import MaxFilter


def plain_filter() -> MaxFilter:
    """A filter whose convolutions pass the one channel on, so that only the maxima are left."""
    module = MaxFilter(in_channels=1, channels=1)
    module.norm = nn.Identity()
    for conv in (module.conv, module.out):
        nn.init.dirac_(conv.weight)
    return module


def test_distance_below_the_largest_of_the_window() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 1, 1], x[0, 0, 1, 2], x[0, 0, 4, 4] = 5.0, 3.0, 1.0
    logits = torch.full((1, 2, 5, 5), 0.5)
    (filtered,) = plain_filter()([logits], [x])
    below = filtered - 0.5
    expected = torch.zeros(5, 5)
    expected[0:3, 0:3] = -5  # in reach of the 5, from 0
    expected[1, 1], expected[1, 2] = 0.0, 3 - 5
    expected[0:3, 3] = -3  # in reach of the 3 alone
    expected[3:5, 3:5] = -1
    expected[4, 4] = 0.0
    torch.testing.assert_close(below, expected.expand(1, 2, 5, 5))


def test_neighbouring_levels_count_and_no_others() -> None:
    # A constant on each level: 1, 2, 4. Each is below the largest of itself and its neighbours.
    maps = [torch.full((1, 1, 8 // 2**i, 8 // 2**i), 2.0**i) for i in range(3)]
    logits = [torch.zeros_like(x) for x in maps]
    filtered = plain_filter()(logits, maps)
    for level, below in zip(filtered, (1 - 2, 2 - 4, 4 - 4), strict=True):
        torch.testing.assert_close(level, torch.full_like(level, float(below)))


def test_odd_sizes() -> None:
    module = MaxFilter(in_channels=32, channels=8, num_anchors=3)
    maps = [torch.randn(2, 32, 7, 5), torch.randn(2, 32, 4, 3)]
    logits = [torch.randn(2, 6, 7, 5), torch.randn(2, 6, 4, 3)]
    assert [x.shape for x in module(logits, maps)] == [x.shape for x in logits]
