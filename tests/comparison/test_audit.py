"""The audit of results files: Detectron2's numbers, planted duplicates, its page and command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances
from PIL import Image

from onenet import ConfigError, DataError
from onenet.cli import main
from onenet.comparison import audit
from onenet.comparison.tables import crowding_table
from onenet.data import register_coco_json
from onenet.evaluation import EndToEndEvaluator

SIZE = 160


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with images/, val.json and the results of FCOS.json and FCOS-nms.json."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations, found, kept = [], [], [], []
    for image_id in (5, 3, 12, 8):
        pixels = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{image_id}.png")
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "width": SIZE, "height": SIZE}
        )
        for i in range(4):
            entry = {"image_id": image_id, "category_id": (4, 2)[i % 2]}
            box = [10 + 40 * (i % 2), 10 + 40 * (i // 2), 30, 30]
            annotations.append({**entry, "id": len(annotations) + 1, "bbox": box, "iscrowd": 0})
            kept.append({**entry, "bbox": box, "score": 0.9})
            found += [kept[-1], {**entry, "bbox": box, "score": 0.05 + 0.2 * i}]
    categories = [{"id": 4, "name": "<four>"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for name, values in (("val", content), ("FCOS", found), ("FCOS-nms", kept)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return tmp_path


def results_of(audited: dict[str, Any], detector: int = 0, variant: str = "as_configured"):
    return audited["detectors"][detector]["seeds"][0]["evaluations"][variant]["results"]


def test_planted_duplicates_are_counted(place: Path) -> None:
    audited = audit(place / "val.json", {"FCOS": place / "FCOS.json"})
    results = results_of(audited)
    # In each of four images duplicates of 0.05, 0.25, 0.45, 0.65, each of another object
    assert [results[f"duplicates@{t}"] for t in (0.1, 0.3, 0.5)] == [3, 2, 1]
    assert results["recall"] == 100 and results["AP_after_NMS"] == pytest.approx(100)
    assert results["score_gap"] == pytest.approx(0.9 - 0.35)
    assert audited["detectors"][0]["has_nms"] is None
    thresholds = audited["detectors"][0]["thresholds"]["as_configured"]
    assert [entry["name"] for entry in thresholds["classes"]] == ["two", "<four>"]
    headings = [row[0] for row in crowding_table(audited).rows if len(row) == 1]
    assert [heading[-10:] for heading in headings] == ["16 objects", *[" 0 objects"] * 3]
    assert len(crowding_table(audited).rows) == len(headings) + 1  # no numbers of no objects


@pytest.fixture
def evaluated(place: Path, tmp_path: Path) -> Path:
    """Detectron2's and our evaluation of noisy detections, with crowds; its folder."""
    content = json.loads((place / "val.json").read_text())
    rng = np.random.default_rng(1)
    for annotation in content["annotations"]:
        annotation["bbox"] = (np.array(annotation["bbox"]) + rng.random(4) * 30).round(2).tolist()
        annotation["iscrowd"] = int(rng.random() < 0.2)
    (place / "noisy.json").write_text(json.dumps(content))
    name = register_coco_json(str(place / "noisy.json"), str(place / "images"))
    out = tmp_path / "inference"
    evaluators = DatasetEvaluators(
        [
            COCOEvaluator(name, tasks=("bbox",), output_dir=str(out)),
            EndToEndEvaluator(dataset_name=name, output_dir=str(out)),
        ]
    )
    evaluators.reset()
    for record in DatasetCatalog.get(name):
        gt = np.array([a["bbox"] for a in record["annotations"]])
        boxes = np.repeat(gt, 6, axis=0) + rng.normal(0, 3, (6 * len(gt), 4))
        boxes[:, 2:] += boxes[:, :2]
        classes = np.repeat([a["category_id"] for a in record["annotations"]], 6)
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes).float())
        instances.scores = torch.from_numpy(rng.random(len(boxes))).float()
        instances.pred_classes = torch.from_numpy(classes)
        evaluators.process([record], [{"instances": instances}])
    evaluators.evaluate()
    yield out
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_equals_the_evaluation_that_wrote_the_file(evaluated: Path, place: Path) -> None:
    path = evaluated / "coco_instances_results.json"
    audited = audit(place / "noisy.json", {"run": path}, output=place / "out")
    for name in ("end_to_end.json", "thresholds.json"):
        found, expected = (
            json.loads((folder / name).read_text()) for folder in (place / "out" / "run", evaluated)
        )
        assert found.pop("dataset") != expected.pop("dataset")  # a path, and a name
        assert found == expected
    assert 10 < results_of(audited)["AP"] < 90


def test_two_files_of_a_detector_are_its_variants(place: Path) -> None:
    files = {name: place / f"{name}.json" for name in ("FCOS-nms", "FCOS")}
    audited = audit(place / "val.json", {**files, "b-nms": files["FCOS-nms"]})
    first, other = audited["detectors"]
    assert (first["name"], first["has_nms"], other["name"]) == ("FCOS", True, "b-nms")
    assert list(first["aggregate"]) == ["as_configured", "nms_off"]
    assert results_of(audited)["duplicates@0.1"] == 0
    assert results_of(audited, variant="nms_off")["duplicates@0.1"] == 3
    assert other["has_nms"] is None


def test_page_and_command(place: Path, capsys) -> None:
    files = [f"raw={place / 'FCOS.json'}", f"raw-nms={place / 'FCOS-nms.json'}"]
    words = ["--annotations", str(place / "val.json"), "--detections", *files]
    out = place / "out"
    main(["audit", *words, str(place / "FCOS.json"), "--output", str(out), "--images",
          str(place / "images")])  # fmt: skip
    printed = capsys.readouterr().out
    assert re.search(r"raw +NMS off .* \+\d", printed) and re.search(r"FCOS +as in the", printed)
    assert "touches no other" in printed and f"Page: {out / 'audit.html'}" in printed
    page = (out / "audit.html").read_text()
    labels = ("ground truth", "raw, with NMS", "raw, NMS off", "FCOS")
    for image in (1, 4):
        alts = [f'alt="Image {image}, {label}: ' for label in labels]
        assert all(alt in page for alt in alts)
    # Of the four best boxes one is a duplicate of 0.65, as its object's is 0.9: all four are found
    assert 'alt="Image 1, raw, NMS off: 4 found, 0 duplicate, 0 other"' in page
    assert "&lt;four&gt;" in page and "<four>" not in page
    assert "During training" not in page and "seeds" not in page and "Score thresholds" in page
    for name in ("raw", "raw-nms", "FCOS"):
        assert json.loads((out / name / "end_to_end.json").read_text())["num_images"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.json", "--nms", "2"], "The NMS threshold is 2.0; give one from 0 to 1"),
        (["x/a.json", "y/a.json"], "two files named 'a', x/a.json and y/a.json"),
        (["../=a.json"], r"The name '../' of detections has to begin with a letter"),
        (["a.json", "--images", "images"], "--images are for the page; give its folder, --output"),
        (["a.json", "--max-detections", "0"], "give 1 or more"),
        (["a.json", "--min-score", "3"], "least score is 3.0"),
        (["a="], "--detections has 'a=', which names no file"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(place: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["audit", "--annotations", str(place / "val.json"), "--detections", *words])


def test_missing_images_and_no_files(place: Path) -> None:
    (place / "images" / "3.png").unlink()
    with pytest.raises(DataError, match="the first is 3.png"):
        audit(place / "val.json", {"a": place / "FCOS.json"}, image_root=place / "images")
    with pytest.raises(ConfigError, match="give a results file"):
        audit(place / "val.json", {})


def test_an_output_that_cannot_be_written(place: Path) -> None:
    output = place / "FCOS.json"
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=r"FCOS.json/a cannot be written \(Not a directory\)"):
        audit(place / "val.json", {"a": output}, output=output)
    assert output.read_bytes() == before
