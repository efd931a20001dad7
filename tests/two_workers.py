"""Run by test_distributed.py: one training step in two gloo workers, or in one process.

python tests/two_workers.py OUT NUM_WORKERS COUNTS CONFIG NUM_PIECES, with COUNTS the objects of
each of the joined batch's images, "3,0,2,1", CONFIG a name in configs/digits, and NUM_PIECES those
in which a worker's batch goes through the model. Writes OUT with averaged losses and gradients.
"""

import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from onenet.engine import load_config
from onenet.engine.accumulation import AccumulatingModel

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "digits"


def joined_batch(counts: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    batch = []
    for count in counts:
        top_left = torch.rand(count, 2, generator=generator) * 40
        size = torch.rand(count, 2, generator=generator) * 20 + 4
        gt = Instances((64, 64))
        gt.gt_boxes = Boxes(torch.cat((top_left, top_left + size), dim=1))
        gt.gt_classes = torch.randint(10, (count,), generator=generator)
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        batch.append({"image": image, "instances": gt})
    return batch


def main(out: str, counts: list[int], config: str, num_pieces: int) -> None:
    # Batch norm would see each worker's own images
    cfg = load_config(
        str(CONFIGS / f"{config}.yaml"),
        ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.DEVICE", "cpu", "SEED", "1"],
    )
    torch.manual_seed(1)
    model = create_ddp_model(build_model(cfg).train(), device_ids=None)
    if num_pieces > 1:
        model = AccumulatingModel(model, num_pieces, torch.Tensor.backward)
    share = len(counts) // comm.get_world_size()
    start = comm.get_rank() * share
    losses = model(joined_batch(counts)[start : start + share])
    sum(losses.values()).backward()
    losses = comm.reduce_dict({name: loss.detach() for name, loss in losses.items()})
    if comm.is_main_process():
        gradients = {n.replace("module.", ""): p.grad for n, p in model.named_parameters()}
        torch.save({"losses": losses, "gradients": gradients}, out)


if __name__ == "__main__":
    out, num_workers, counts, config, num_pieces = sys.argv[1:]
    args = (out, [int(count) for count in counts.split(",")], config, int(num_pieces))
    launch(main, int(num_workers), dist_url="auto", args=args)
