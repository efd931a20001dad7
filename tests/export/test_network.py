"""The detector as a function of tensors."""

from __future__ import annotations

import pytest
import torch

from onenet.export import ExportableOneNet
from onenet.export.certificate import pad_batch

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


def test_training_leaves_no_trace(build) -> None:
    _, plain = build("digits/onenet_fcos_R18_FPN")
    _, paired = build("digits/onenet_fcos_R18_FPN", "MODEL.ONENET.ONE_TO_MANY.BRANCH", "pair")
    shapes = {k: v.shape for k, v in ExportableOneNet(plain).state_dict().items()}
    assert shapes == {k: v.shape for k, v in ExportableOneNet(paired).state_dict().items()}
    assert paired.head.one_to_many is not None  # the model itself stays as it was


def test_half_is_half(build) -> None:
    _, model = build("digits/onenet_fcos_R18_FPN")
    network = ExportableOneNet(model, half=True)
    assert {p.dtype for p in network.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    images = torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, _ = network(images, torch.tensor([[64, 64]]))
    assert boxes.dtype == scores.dtype == torch.float32 and scores.isfinite().all()
