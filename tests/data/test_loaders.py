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
from detectron2.structures import BoxMode
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


def changed(tmp_path: Path, **annotation: object) -> str:
    """The set with a change of each annotation, registered again."""
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry.update(annotation)
    path.write_text(json.dumps(content))
    return register_coco_json(str(path), str(tmp_path / "images"))


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("has_crowd", [True, False])
def test_a_training_set_without_objects_is_refused(cfg, tmp_path, filters, has_crowd) -> None:
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filters
    path = tmp_path / "set.json"
    if not has_crowd:
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    changed(tmp_path, iscrowd=1)
    with pytest.raises(DataError, match="No image of .*set.json .*has an object that is no crowd"):
        TrainLoader(cfg)


def test_more_objects_than_can_be_found_are_told_once(cfg, tmp_path: Path, caplog) -> None:
    """For training and for testing; crowd regions do not count."""
    (other,) = cfg.DATASETS.TRAIN
    cfg.DATASETS.TRAIN = (changed(tmp_path, image_id=3),)
    cfg.MODEL.META_ARCHITECTURE = "OneNet"
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.ONENET.RESCORING.CANDIDATES = NUM_IMAGES, 8
    TrainLoader(cfg), build_test_loader(cfg, cfg.DATASETS.TRAIN[0])
    assert "can be found" not in caplog.text
    cfg.TEST.DETECTIONS_PER_IMAGE = 6
    for candidates, what in ((8, ""), (5, " and MODEL.ONENET.RESCORING.CANDIDATES (now 5)")):
        cfg.MODEL.ONENET.RESCORING.CANDIDATES = candidates
        caplog.clear()
        for _ in range(2):
            TrainLoader(cfg)
            build_test_loader(cfg, cfg.DATASETS.TRAIN[0])
        (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert message == (
            f"{tmp_path / 'images' / '3.png'} of {cfg.DATASETS.TRAIN[0]} has 7 objects, more than"
            f" can be found: raise TEST.DETECTIONS_PER_IMAGE (now 6){what} to 7 or more."
        )
    caplog.clear()
    name = "a_copy_for_testing"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(other))
    for mode in ("fail", "skip"):
        cfg.INPUT.ON_BAD_IMAGE = mode
        build_test_loader(cfg, name)
    DatasetCatalog.remove(name)
    assert caplog.text.count(f"of {name} has 7 objects") == 1


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


def told(caplog, what: str) -> list[str]:
    return [m for r in caplog.records if what in (m := r.getMessage())]


def test_objects_given_twice_are_told_once(cfg, tmp_path: Path, caplog) -> None:
    """yolov5 2156, ultralytics 8515."""
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    copies = [{**a, "id": a["id"] + 100} for a in content["annotations"][1:3]]
    path.write_text(json.dumps({**content, "annotations": [*content["annotations"], *copies]}))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (changed(tmp_path),)
    for _ in range(2):
        TrainLoader(cfg), build_test_loader(cfg, cfg.DATASETS.TEST[0])
    (message,) = told(caplog, "have the same box and class")
    assert message.startswith("2 objects of ") and "2.png: " in message


def test_classes_without_objects_are_named(cfg, tmp_path: Path, caplog) -> None:
    """Roboflow's exports have a category 0 for the group of all classes."""
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    content["categories"].insert(0, {"id": 0, "name": "things-1", "supercategory": "none"})
    path.write_text(json.dumps(content))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (changed(tmp_path),)
    TrainLoader(cfg)
    (message,) = told(caplog, "they cannot be learnt")
    assert "no object of 1 of its classes (things-1)" in message


def test_test_images_that_are_trained_on_are_counted(cfg, tmp_path: Path, caplog) -> None:
    (first,) = cfg.DATASETS.TRAIN
    TrainLoader(cfg)
    (message,) = told(caplog, "are trained on, too")
    assert message.startswith(f"{NUM_IMAGES} of the {NUM_IMAGES} images of {first} ")
    cfg.DATASETS.TEST = ()
    caplog.clear()
    TrainLoader(cfg)
    assert not told(caplog, "are trained on, too")


@pytest.fixture
def of_a_program(cfg):
    """Makes records the dataset that is trained on."""

    def register(records: list[dict]) -> None:
        if "of_a_program" in DatasetCatalog:
            DatasetCatalog.remove("of_a_program")
        DatasetCatalog.register("of_a_program", lambda: records)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("of_a_program",), ()

    yield register
    DatasetCatalog.remove("of_a_program")


@pytest.mark.parametrize(
    ("annotation", "what"),
    [
        ({"bbox": []}, r"'bbox' \[\]"),  # detectron2 3038
        ({"bbox": [1, 2, 3, float("nan")]}, "nan"),
        ({"bbox": None}, "None"),
        ({"bbox_mode": BoxMode.XYWH_REL}, "XYWH_REL"),
        ({"category_id": 1}, "of class 1; .* classes are 0 to 0"),
        ({"category_id": "0"}, "of class '0'"),
        ({"category_id": None}, "of class None"),
    ],
)
def test_records_of_a_program(cfg, of_a_program, annotation: dict, what: str) -> None:
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ONENET.NUM_CLASSES = "OneNet", 1
    record = {"file_name": "a.png", "image_id": 1, "height": 24, "width": 32}
    whole = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    of_a_program([{**record, "annotations": [whole]}])
    TrainLoader(cfg)
    of_a_program([{**record, "annotations": [{**whole, **annotation}]}])
    for load in (TrainLoader, lambda cfg: build_test_loader(cfg, "of_a_program")):
        with pytest.raises(DataError, match=rf"^a\.png has an object .*{what}"):
            load(cfg)


@pytest.mark.parametrize("records", [[], [{"file_name": "a.png", "annotations": None}]])
def test_training_sets_of_a_program_without_objects(cfg, of_a_program, records) -> None:
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    of_a_program(records)
    with pytest.raises(DataError, match="No image of of_a_program has an object"):
        TrainLoader(cfg)


@pytest.mark.parametrize(
    ("records", "what"),
    [([], "'of_a_program' has no images"), ([{"annotations": []}], "A record has no 'file_name'")],
)
def test_test_sets_of_a_program(cfg, of_a_program, records: list[dict], what: str) -> None:
    of_a_program(records)
    with pytest.raises(DataError, match=what):
        build_test_loader(cfg, "of_a_program")
