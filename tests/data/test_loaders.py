"""The loaders: a stream that can be entered anywhere, and what becomes of a broken image."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from PIL import Image

from onenet.config import add_onenet_config
from onenet.data import register_coco_json
from onenet.data.loaders import TrainLoader, _WithoutBroken, build_test_loader
from onenet.utils.errors import ConfigError, DataError, ImageError

NUM_IMAGES = 7


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Of a set of images of both orientations, each of one grey value: its number."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, NUM_IMAGES + 1):
        height, width = ((24, 32), (32, 24))[i % 2]
        name = f"{i}.png"
        Image.fromarray(np.full((height, width, 3), i, np.uint8)).save(tmp_path / "images" / name)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        box = {"bbox": [2 * i, 2, 6, 8], "area": 48, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "thing"}]
    (tmp_path / "set.json").write_text(json.dumps(content))
    name = register_coco_json(str(tmp_path / "set.json"), str(tmp_path / "images"))
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (16, 20, 24), 24
    cfg.SEED = 3
    return cfg


def stream(cfg: CfgNode, num_batches: int, start: int = 0, seed: int | None = None) -> list:
    """What a training sees of each sample: image id, size, boxes."""
    loader = TrainLoader(cfg)
    loader.start = start
    loader.seed = loader.seed if seed is None else seed
    return [
        [(s["image_id"], s["image"].shape, s["instances"].gt_boxes.tensor.tolist()) for s in batch]
        for batch in itertools.islice(loader, num_batches)
    ]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_stream_can_be_entered_anywhere(cfg, sampler: str, grouped: bool) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    whole = stream(cfg, 20)
    for start in (1, 9, 13):
        assert stream(cfg, 20 - start, start) == whole[start:]
    cfg.SEED = -1
    assert stream(cfg, 20, seed=3) == whole  # as one that is resumed, and was not told the seed
    assert stream(cfg, 20, seed=4) != whole
    assert len({size for batch in whole for _, size, _ in batch}) > 2  # it was augmented
    is_wide = [{s[1][2] > s[1][1] for s in batch} for batch in whole]
    assert all(len(kinds) == 1 for kinds in is_wide) == grouped


@pytest.mark.parametrize("category", [-1, 3])
def test_a_class_that_the_model_does_not_have(cfg, category: int) -> None:
    """In a set without class names, which nothing else looks at."""
    (source,) = cfg.DATASETS.TRAIN
    records = DatasetCatalog.get(source)
    records[2]["annotations"][0]["category_id"] = category
    name = f"without_names_{category}"
    DatasetCatalog.register(name, lambda: records)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ONENET.NUM_CLASSES = "OneNet", 3
    cfg.DATASETS.TRAIN = (name,)
    try:
        with pytest.raises(DataError, match=rf"3\.png has an object of class {category}; .*0 to 2"):
            TrainLoader(cfg)
    finally:
        DatasetCatalog.remove(name)


def test_an_epoch_has_each_image_once(cfg) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    ids = [batch[0][0] for batch in stream(cfg, 3 * NUM_IMAGES)]
    epochs = [ids[i * NUM_IMAGES : (i + 1) * NUM_IMAGES] for i in range(3)]
    assert all(sorted(epoch) == list(range(1, NUM_IMAGES + 1)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_stream_does_not_depend_on_who_loads_it(cfg) -> None:
    whole = stream(cfg, 12)
    random.random(), np.random.rand(), torch.rand(1)
    assert stream(cfg, 12) == whole
    cfg.DATALOADER.NUM_WORKERS = 2
    assert stream(cfg, 12) == whole


def test_loading_leaves_the_global_generators_as_they_are(cfg) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    stream(cfg, 3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_workers_share_the_stream(cfg, monkeypatch) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"  # which needs no process group
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    alone = [batch[0] for batch in stream(cfg, 8)]
    cfg.SOLVER.IMS_PER_BATCH = 2
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert [batch[0] for batch in stream(cfg, 4)] == alone[rank::2]
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(ConfigError, match="IMS_PER_BATCH is 3, which 2 workers cannot share"):
        TrainLoader(cfg)


def test_a_set_of_crowd_regions_alone_is_named(cfg, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="No image of .*set.json has an object that is no crowd"):
        TrainLoader(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert all(not boxes for batch in stream(cfg, 5) for _, _, boxes in batch)


def test_another_image_takes_the_place_of_a_broken_one(cfg, tmp_path: Path) -> None:
    broken = tmp_path / "images" / "4.png"
    broken.write_bytes(b"")
    with pytest.raises(ImageError, match="4.png cannot be read"):
        stream(cfg, 12)
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    loader = TrainLoader(cfg)
    batches = list(itertools.islice(loader, 12))
    assert all(len(batch) == 2 for batch in batches)
    assert 4 not in {s["image_id"] for batch in batches for s in batch}
    ((sentence, count),) = loader.skipped.items()
    assert str(broken) in sentence and count >= 2
    assert stream(cfg, 5, start=7) == stream(cfg, 12)[7:]


def test_images_that_are_all_broken_end_the_run(cfg, tmp_path: Path) -> None:
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    with pytest.raises(DataError, match="none of 100 images could be read; the last: The image"):
        stream(cfg, 1)
    with pytest.raises(DataError, match="No image could be read; the first: The image"):
        list(build_test_loader(cfg, cfg.DATASETS.TEST[0]))


def test_evaluation_goes_on_without_a_broken_image(cfg, tmp_path: Path, caplog) -> None:
    (tmp_path / "images" / "4.png").write_bytes(b"")
    with pytest.raises(ImageError, match="4.png cannot be read"):
        list(build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len(loader) == NUM_IMAGES
    assert [s["image_id"] for batch in loader for s in batch] == [1, 2, 3, 5, 6, 7]
    assert "1 of 7 images could not be read, and count as images in which nothing" in caplog.text


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_a_narrow_image_can_be_skipped(cfg, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    content["images"][3].update(width=size[0], height=size[1])
    path.write_text(json.dumps(content))
    Image.new("RGB", size).save(tmp_path / "images" / content["images"][3]["file_name"])
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    loader = TrainLoader(cfg)
    ids = {s["image_id"] for batch in itertools.islice(loader, 12) for s in batch}
    assert content["images"][3]["id"] not in ids
    assert "is too narrow" in "".join(loader.skipped)
    tested = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len([s for batch in tested for s in batch]) == NUM_IMAGES - 1


def test_an_empty_test_loader() -> None:
    assert list(_WithoutBroken([])) == []
