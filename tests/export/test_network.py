"""The detector as a function of tensors."""

from __future__ import annotations

import pytest
import torch

from onenet.export import ExportableOneNet
from onenet.export.parity import pad_batch

HEADS = [
    "digits/onenet_fcos_R18_FPN",
    "digits/onenet_retinanet_R18_FPN",
    "digits/onenet_point_R18",
    "digits/recommended_R18_FPN",
]


@pytest.mark.parametrize("config", HEADS)
def test_finds_what_the_model_finds_whatever_the_padding(build, config: str) -> None:
    _, model = build(config)
    network = ExportableOneNet(model)
    images = [torch.randint(256, (3, *s), dtype=torch.uint8) for s in ((96, 70), (128, 128))]
    padded, sizes = pad_batch(images, 32)
    padded[0, 96:], padded[0, :, 70:] = 255, 255  # rubbish where there is no image
    with torch.no_grad():
        boxes, scores, classes = network(torch.from_numpy(padded), torch.from_numpy(sizes))
        expected = model([{"image": image} for image in images])
    for i, result in enumerate(expected):
        instances = result["instances"]
        solid = (boxes[i, :, 2] > boxes[i, :, 0]) & (boxes[i, :, 3] > boxes[i, :, 1])
        assert len(instances) > 50
        assert torch.allclose(boxes[i, solid], instances.pred_boxes.tensor, atol=1e-4)
        assert torch.allclose(scores[i, solid], instances.scores, atol=1e-6)
        assert torch.equal(classes[i, solid], instances.pred_classes)


@pytest.mark.parametrize("config", ["digits/onenet_fcos_R18_FPN", "digits/recommended_R18_FPN"])
def test_half_is_half(build, config: str) -> None:
    """All but rescoring, which costs nothing."""
    _, model = build(config)
    network = ExportableOneNet(model, half=True)
    parameters = dict(network.named_parameters())
    rescoring = {name for name in parameters if name.startswith("rescoring.")}
    assert bool(rescoring) == ("recommended" in config)
    assert {parameters.pop(name).dtype for name in rescoring} <= {torch.float32}
    assert {p.dtype for p in parameters.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    inputs = torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8), torch.tensor([[64, 64]])
    with torch.no_grad():
        boxes, scores, _ = network(*inputs)
        _, expected, _ = ExportableOneNet(model)(*inputs)
    assert boxes.dtype == scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.05
