"""CrowdHuman: the conversion of .odgt files, what may be wrong in them, and a run end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image
from pycocotools.coco import COCO

from onenet.data import (
    CROWDED_DIGITS,
    convert_odgt,
    make_crowdhuman,
    make_digits,
    register_coco_json,
    register_crowdhuman,
)
from onenet.data import crowdhuman as crowdhuman_module
from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import load_config
from onenet.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "crowdhuman"

PERSON = {
    "tag": "person",
    "fbox": [-3, 5, 20, 30],
    "vbox": [0, 5, 17, 20],
    "hbox": [2, 5, 4, 4],
    "head_attr": {"ignore": 1, "occ": 0, "unsure": 0},
    "extra": {"box_id": 0, "occ": 1},
}
IGNORED_PERSON = {**PERSON, "fbox": [1, 1, 4, 4], "extra": {"ignore": 1}}
MASK = {"tag": "mask", "fbox": [10, 0, 30, 10], "vbox": [10, 0, 30, 10], "hbox": [1, 1, 2, 2]}
LINES = [
    {"ID": "27,c9db", "gtboxes": [PERSON, IGNORED_PERSON, MASK]},
    {"ID": "28,1a", "gtboxes": []},
    {"ID": "29,ff", "gtboxes": [MASK]},
]


def write_images(folder: Path, *names: str, size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / f"{name}.jpg")


def write_odgt(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def paths(folder: Path, split: str = "train") -> tuple[str, str]:
    """The .odgt file and the image folder."""
    return str(folder / f"annotation_{split}.odgt"), str(folder / "Images")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A crowdhuman folder whose train split is LINES."""
    folder = tmp_path / "crowdhuman"
    write_images(folder / "Images", *(line["ID"] for line in LINES))
    write_odgt(folder / "annotation_train.odgt", LINES)
    return folder


@pytest.fixture
def registered(folder: Path):
    name = f"crowd_{folder.parent.name}"
    register_crowdhuman(name, *paths(folder))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_conversion(folder: Path) -> None:
    json_file = make_crowdhuman(*paths(folder))
    assert json_file == str(folder / "annotation_train.json")
    content = json.loads(Path(json_file).read_text())
    size = {"width": 40, "height": 30}
    assert content["images"] == [
        {"id": 1, "file_name": "27,c9db.jpg", **size},
        {"id": 2, "file_name": "28,1a.jpg", **size},
        {"id": 3, "file_name": "29,ff.jpg", **size},
    ]
    assert content["categories"] == [{"id": 1, "name": "person"}]
    # As they are, though one leaves the image
    person, ignored, mask, lonely_mask = content["annotations"]
    assert person == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [-3, 5, 20, 30],
        "vis_bbox": [0, 5, 17, 20],
        "area": 600,
        "iscrowd": 0,  # the head's "ignore" is no matter
    }
    assert (ignored["iscrowd"], ignored["bbox"]) == (1, [1, 1, 4, 4])
    assert (mask["iscrowd"], mask["image_id"]) == (1, 1)
    assert (lonely_mask["iscrowd"], lonely_mask["image_id"], lonely_mask["id"]) == (1, 3, 4)
    assert len(COCO(json_file).getAnnIds(iscrowd=True)) == 3


def test_the_json_is_a_valid_own_set(folder: Path) -> None:
    name = register_coco_json(make_crowdhuman(*paths(folder)), str(folder / "Images"))
    assert MetadataCatalog.get(name).thing_classes == ["person"]
    assert len(DatasetCatalog.get(name)) == 3


def test_only_the_full_box_is_needed(folder: Path) -> None:
    write_odgt(
        folder / "annotation_val.odgt",
        [{"ID": "28,1a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, 4.5]}]}],
    )
    content = json.loads(Path(make_crowdhuman(*paths(folder, "val"))).read_text())
    (annotation,) = content["annotations"]
    assert "vis_bbox" not in annotation
    assert (annotation["bbox"], annotation["area"]) == ([1, 2, 3, 4.5], 13.5)


def test_sizes_are_those_of_the_upright_image(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which Detectron2 undoes
    Image.new("RGB", (40, 30)).save(folder / "Images" / "28,1a.jpg", exif=exif)
    content = json.loads(Path(make_crowdhuman(*paths(folder))).read_text())
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    assert sizes == [(40, 30), (30, 40), (40, 30)]


def test_registered_and_loaded(registered: str, folder: Path) -> None:
    metadata = MetadataCatalog.get(registered)
    assert metadata.thing_classes == ["person"]
    assert metadata.evaluator_type == "crowdhuman"
    assert metadata.json_file == str(folder / "annotation_train.json")
    first, second, third = DatasetCatalog.get(registered)
    assert first["file_name"] == str(folder / "Images" / "27,c9db.jpg")
    assert [a["iscrowd"] for a in first["annotations"]] == [0, 1, 1]
    assert {a["category_id"] for a in first["annotations"]} == {0}
    assert (second["annotations"], len(third["annotations"])) == ([], 1)
    assert {"crowdhuman_train", "crowdhuman_val"} <= set(DatasetCatalog.list())


def test_training_leaves_ignore_regions_out(registered: str) -> None:
    cfg = load_config(
        str(CONFIGS / "onenet_fcos_R50_FPN.yaml"),
        ["DATASETS.TRAIN", f"('{registered}',)", "INPUT.RANDOM_FLIP", "none"]
        + ["INPUT.MIN_SIZE_TRAIN", "(30,)"],
    )
    records = get_detection_dataset_dicts(
        registered, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    mapper = OneNetDatasetMapper(cfg, is_train=True)
    instances = [mapper(record)["instances"] for record in records]
    assert [len(objects) for objects in instances] == [1, 0, 0]  # and keep images without objects
    # Cut to the image
    assert instances[0].gt_boxes.tensor.tolist() == [[0, 5, 17, 30]]
    assert len(get_detection_dataset_dicts(registered, filter_empty=True)) == 1


def test_made_once_and_again_with_another_odgt(folder: Path, monkeypatch) -> None:
    json_file = Path(make_crowdhuman(*paths(folder)))
    made = json_file.read_bytes()
    with monkeypatch.context() as patched:
        # Neither converted nor locked: the folder may be read-only by now
        patched.setattr(crowdhuman_module, "convert_odgt", pytest.fail)
        patched.setattr(crowdhuman_module, "file_lock", pytest.fail)
        assert make_crowdhuman(*paths(folder)) == str(json_file)
    write_odgt(folder / "annotation_train.odgt", LINES[:1])
    make_crowdhuman(*paths(folder))
    assert len(json.loads(json_file.read_text())["images"]) == 1
    write_odgt(folder / "annotation_train.odgt", LINES)
    make_crowdhuman(*paths(folder))
    assert json_file.read_bytes() == made
    monkeypatch.setattr(crowdhuman_module, "CONVERSION_VERSION", 0)
    json_file.write_text("of another version")
    make_crowdhuman(*paths(folder))
    assert json_file.read_bytes() == made


@pytest.mark.parametrize(
    "damage", [lambda made: made[:50], lambda made: bytes(len(made))], ids=["cut", "zeros"]
)
def test_a_damaged_json_is_made_anew(folder: Path, registered: str, damage: Any) -> None:
    json_file = Path(make_crowdhuman(*paths(folder)))
    made = json_file.read_bytes()
    json_file.write_bytes(damage(made))
    assert len(DatasetCatalog.get(registered)) == 3
    assert json_file.read_bytes() == made


def test_a_damaged_recipe_makes_anew(folder: Path) -> None:
    json_file = Path(make_crowdhuman(*paths(folder)))
    recipe_file = Path(f"{json_file}.recipe")
    recipe = recipe_file.read_bytes()
    recipe_file.write_bytes(b"\xff" + recipe)
    make_crowdhuman(*paths(folder))
    assert recipe_file.read_bytes() == recipe


def test_another_image_folder_makes_anew(folder: Path) -> None:
    odgt_file, _ = paths(folder)
    write_images(folder / "small", *(line["ID"] for line in LINES), size=(4, 3))
    for name, width in (("Images", 40), ("small", 4), ("Images", 40)):
        content = json.loads(Path(make_crowdhuman(odgt_file, str(folder / name))).read_text())
        assert {image["width"] for image in content["images"]} == {width}


def test_a_set_moved_as_a_whole_stays(folder: Path, monkeypatch) -> None:
    make_crowdhuman(*paths(folder))
    moved = folder.rename(folder.parent / "moved")
    monkeypatch.setattr(crowdhuman_module, "convert_odgt", pytest.fail)
    make_crowdhuman(*paths(moved))
    monkeypatch.chdir(moved)
    assert make_crowdhuman("annotation_train.odgt", "Images") == "annotation_train.json"


def test_an_interrupted_conversion_is_made_anew(folder: Path, monkeypatch) -> None:
    json_file = folder / "annotation_train.json"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_crowdhuman(*paths(folder))
    assert not json_file.exists()
    make_crowdhuman(*paths(folder))
    assert len(json.loads(json_file.read_text())["images"]) == 3
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", ["annotation_train.json", "annotation_train.json.recipe"])
def test_a_killed_conversion_is_made_anew(folder: Path, name: str) -> None:
    """SIGKILL in the middle of a file, with the lock in its hands."""
    write_whole = crowdhuman_module.write_whole

    def write_or_die(path: str, content: bytes) -> None:
        if os.path.basename(path) == name:
            Path(f"{path}.tmp").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, content)

    def convert() -> None:
        crowdhuman_module.write_whole = write_or_die  # in the child only
        make_crowdhuman(*paths(folder))

    process = multiprocessing.get_context("fork").Process(target=convert)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / f"{name}.tmp").exists() and not (folder / name).exists()
    content = json.loads(Path(make_crowdhuman(*paths(folder))).read_text())
    assert content == convert_odgt(*paths(folder))
    assert not list(folder.glob("*.tmp"))


def test_several_processes_convert_once(folder: Path, monkeypatch) -> None:
    def slow_conversion(*args: str) -> dict[str, Any]:
        with open(folder / "conversions", "a") as file:
            file.write("x")
        time.sleep(0.5)  # the others wait by now
        return convert_odgt(*args)

    monkeypatch.setattr(crowdhuman_module, "convert_odgt", slow_conversion)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make_crowdhuman, args=paths(folder)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (folder / "conversions").read_text() == "x"
    assert len(json.loads((folder / "annotation_train.json").read_text())["annotations"]) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"is not valid json \(.*\): get the file again"),
        (b"\xff\xfe", "is not valid json"),
        ("[]", "has no 'ID'"),
        ({"ID": 3, "gtboxes": []}, "has no 'ID'"),
        ({"ID": "28,1a"}, "has no list 'gtboxes'"),
        (LINES[0], "has the ID '27,c9db' again"),
        ({"ID": "x", "gtboxes": [3]}, "has a box without 'tag'"),
        ({"ID": "x", "gtboxes": [{"fbox": [1, 2, 3, 4]}]}, "has a box without 'tag'"),
        ({"ID": "x", "gtboxes": [{"tag": "person"}]}, "has a box without 'fbox'"),
        ({"ID": "x", "gtboxes": [{**MASK, "fbox": [1, 2, 3]}]}, r"has the 'fbox' \[1, 2, 3\]"),
        ({"ID": "x", "gtboxes": [{**MASK, "vbox": [1, 2, 3, "4"]}]}, "has the 'vbox'"),
        ({"ID": "x", "gtboxes": [{**MASK, "extra": 1}]}, "has the 'extra' 1"),
        ("[" * 100_000, r"is not valid json \(.*\): get the file again"),  # nested too deeply
        ({"ID": "x", "gtboxes": [{**MASK, "fbox": [1, 2, 3, 10**400]}]}, "has the 'fbox' .*1e"),
        ({"ID": "x", "gtboxes": [{**MASK, "fbox": [1, 2, 1e308, 1e308]}]}, "has the 'fbox' .*1e"),
        ({"ID": "x", "gtboxes": [{**MASK, "fbox": [1, 2, float("nan"), 3]}]}, "has the 'fbox'"),
        ({"ID": "x", "gtboxes": [{**MASK, "vbox": [True, False, 3, 4]}]}, "has the 'vbox'"),
        ({"ID": "x", "gtboxes": [{**MASK, "extra": {"ignore": None}}]}, "has the .* None: it must"),
        ({"ID": "x", "gtboxes": [{**MASK, "extra": {"ignore": "1"}}]}, "has the .* '1': it must"),
        ({"ID": "./x/../27,c9db", "gtboxes": []}, "has the ID .* again, the image of line 1"),
    ],
)
def test_broken_lines_are_named(folder: Path, line: Any, message: str) -> None:
    text = json.dumps(line) if isinstance(line, dict) else line
    raw = text if isinstance(text, bytes) else text.encode()
    path = folder / "annotation_train.odgt"
    # Blank lines count, but are no error
    path.write_bytes(json.dumps(LINES[0]).encode() + b"\n\n" + raw + b"\n")
    with pytest.raises(DataError, match=rf"line 3 of \S+annotation_train\.odgt {message}"):
        make_crowdhuman(*paths(folder))
    assert not (folder / "annotation_train.json").exists()


def test_an_empty_file_is_named(folder: Path) -> None:
    (folder / "annotation_train.odgt").write_text("\n")
    with pytest.raises(DataError, match=r"annotation_train\.odgt is empty"):
        make_crowdhuman(*paths(folder))


def test_missing_and_broken_images_are_named(folder: Path, registered: str) -> None:
    path = folder / "Images" / "28,1a.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"The image \S+28,1a\.jpg cannot be read"):
        make_crowdhuman(*paths(folder))
    path.unlink()
    missing = r"1 of the images that \S+annotation_train\.odgt names are not in .*28,1a\.jpg"
    with pytest.raises(DataError, match=missing):
        make_crowdhuman(*paths(folder))
    write_images(folder / "Images", "28,1a")
    make_crowdhuman(*paths(folder))
    path.unlink()  # afterwards
    with pytest.raises(DataError, match=missing):
        DatasetCatalog.get(registered)


@pytest.mark.parametrize("part", ["annotation_train.odgt", "Images"])
def test_missing_parts_are_named_with_their_source(folder: Path, part: str) -> None:
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = (
        rf"there is no \S+{part}: check the path; .* CrowdHuman's website.*DETECTRON2_DATASETS"
    )
    with pytest.raises(DataError, match=message):
        make_crowdhuman(*paths(folder))


def test_a_folder_that_cannot_be_written_is_named(folder: Path, monkeypatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(crowdhuman_module, "file_lock", refuse)
    with pytest.raises(DataError, match=r"annotation_train\.json cannot be made \(.*denied.*link"):
        make_crowdhuman(*paths(folder))


@pytest.mark.parametrize("part", ["annotation_train.odgt", "annotation_train.json.recipe"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, part: str, monkeypatch) -> None:
    make_crowdhuman(*paths(folder))

    def refuse(path: str, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(part):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(crowdhuman_module, "open", refuse, raising=False)
    message = rf"annotation_train\.json cannot be made \(.*denied.*{part}.*let the folder .*link"
    with pytest.raises(DataError, match=message):
        make_crowdhuman(*paths(folder))


def test_any_paths_and_names_can_be_registered(folder: Path, registered: str) -> None:
    """Here with the name of the fixture, whose end removes it."""
    DatasetCatalog.remove(registered)
    MetadataCatalog.remove(registered)
    odgt_file = folder.parent / "elsewhere" / "my.people.txt"
    odgt_file.parent.mkdir()
    (folder / "annotation_train.odgt").rename(odgt_file)
    images = folder.rename(folder.parent / "moved") / "Images"
    for _ in range(2):  # the second changes nothing
        register_crowdhuman(registered, str(odgt_file), str(images))
        first, *_ = DatasetCatalog.get(registered)
        assert first["file_name"] == str(images / "27,c9db.jpg")
    assert MetadataCatalog.get(registered).json_file == f"{odgt_file}.json"
    assert len(json.loads(Path(f"{odgt_file}.json").read_text())["images"]) == 3


def test_a_name_is_not_taken_from_another_dataset(folder: Path, registered: str) -> None:
    odgt_file, image_dir = paths(folder)
    for name, *others in (
        (registered, odgt_file, str(folder)),
        (registered, odgt_file.removesuffix(".odgt"), image_dir),
        ("coco_2017_val", odgt_file, image_dir),
    ):
        with pytest.raises(DataError, match=f"name '{name}' is that of another dataset: choose"):
            register_crowdhuman(name, *others)


def test_boxes_without_area_are_counted_and_left_out_of_training(
    folder: Path, registered: str, caplog: pytest.LogCaptureFixture
) -> None:
    flat = [[20, 2, -10, 4.5], [1, 2, 3, 0], [20, 20, -8, -8]]
    gtboxes = [PERSON, *({"tag": "person", "fbox": box} for box in flat)]
    ignored = {"tag": "mask", "fbox": [1, 2, 0, 3]}  # not one of the people
    write_odgt(folder / "annotation_train.odgt", [{"ID": "28,1a", "gtboxes": [*gtboxes, ignored]}])
    for _ in range(2):  # also when it is made already
        caplog.clear()
        with caplog.at_level("WARNING", logger="onenet"):
            (record,) = DatasetCatalog.get(registered)
        assert "3 boxes of people in" in caplog.text
        assert "annotation_train.odgt have no area: training leaves them out" in caplog.text
    boxes = [a["bbox"] for a in record["annotations"]]
    assert boxes[1:] == [[20, 2, 0, 4.5], [1, 2, 3, 0], [20, 20, 0, 0], [1, 2, 0, 3]]
    cfg = load_config(
        str(CONFIGS / "onenet_fcos_R50_FPN.yaml"),
        ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(30,)"],
    )
    instances = OneNetDatasetMapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 5, 17, 30]]


def test_no_warning_without_such_boxes(registered: str, caplog) -> None:
    with caplog.at_level("WARNING", logger="onenet"):
        DatasetCatalog.get(registered)
    assert "no area" not in caplog.text


def test_convert_odgt_takes_any_paths(folder: Path) -> None:
    moved = folder.rename(folder.parent / "moved")
    content = convert_odgt(str(moved / "annotation_train.odgt"), str(moved / "Images"))
    assert len(content["annotations"]) == 4


def crowd_of_digits(root: Path, split: str, num_images: int) -> None:
    """Crowded digits as people; in each image the first one is an ignore region."""
    digits = Path(make_digits(str(root), split, num_images, layout=CROWDED_DIGITS))
    content = json.loads(digits.read_text())
    images = root / "crowdhuman" / "Images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for record in content["images"]:
        name = f"{split},{record['id']}"
        shutil.copy(digits.parents[1] / split / record["file_name"], images / f"{name}.jpg")
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == record["id"]]
        gtboxes = [
            {"tag": "person" if i else "mask", "fbox": box, "vbox": box, "hbox": box, "extra": {}}
            for i, box in enumerate(boxes)
        ]
        lines.append({"ID": name, "gtboxes": gtboxes})
    write_odgt(root / "crowdhuman" / f"annotation_{split}.odgt", lines)


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(p.name for p in CONFIGS.glob("onenet_*.yaml")))
def test_crowded_digits_through_the_configs(config: str, tmp_path: Path) -> None:
    """Two workers convert, train and evaluate; the evaluation alone gives the same numbers."""
    for split in ("train", "val"):
        crowd_of_digits(tmp_path, split, 4)
    out = tmp_path / "out"
    common = [
        sys.executable, "-W", "ignore", "train_net.py", "--config-file", str(CONFIGS / config),
        "--dist-url", "auto", "--num-gpus",
    ]  # fmt: skip
    opts = [
        "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", "OUTPUT_DIR", str(out),
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()",
        "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128",
    ]  # fmt: skip
    env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}

    def run(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [*common, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "copypaste: AP50,mMR,recall,JI" in done.stdout
        return json.loads((out / "inference" / "crowdhuman.json").read_text())

    trained = run("2", *opts, "MODEL.WEIGHTS", "")
    losses = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert np.isfinite([line["total_loss"] for line in losses if "total_loss" in line]).all()
    assert {"crowdhuman/AP50", "bbox/AP50"} <= set(losses[-1])
    truth = json.loads((tmp_path / "crowdhuman" / "annotation_val.json").read_text())
    ignored = sum(a["iscrowd"] for a in truth["annotations"])
    assert 0 < ignored <= 4
    assert trained["num_images"] == 4
    assert trained["num_ignore_regions"] == ignored
    assert trained["num_objects"] == len(truth["annotations"]) - ignored
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    evaluated = run("1", "--eval-only", *opts, *weights)
    assert evaluated["results"] == pytest.approx(trained["results"], abs=0.5)
    assert (out / "inference" / "end_to_end.json").is_file()
