"""The average of the weights: its formula, and its life in checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from onenet.engine.ema import EMAHook


def test_average_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    hook = EMAHook(model, decay=0.3)
    values = [1.0, 5.0, 7.0, 0.0, 2.0]
    expected = None
    for step, value in enumerate(values):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(value + 1)
            model[1].num_batches_tracked.fill_(step)
        hook.after_step()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        average = hook.average
        torch.testing.assert_close(average[0].weight, torch.full((1, 2), expected))
        torch.testing.assert_close(average[1].running_mean, torch.tensor([expected + 1]))
        assert average[1].num_batches_tracked == step  # a whole number is copied
    assert hook.steps == len(values)
    assert (model[0].weight == 2.0).all()  # what is trained stays as it is


def test_state_goes_to_another_hook() -> None:
    models = [nn.Linear(2, 2) for _ in range(2)]
    first, second = (EMAHook(model, decay=0.9) for model in models)
    first.after_step()
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    assert second.steps == 1
    assert torch.equal(models[1].weight, models[0].weight)
