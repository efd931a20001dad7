"""COCO results files that cannot be used, or leave something out: one sentence each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet import DataError
from onenet.evaluation.results_files import read_annotations, read_results

# Image ids are not in order, category ids do not begin at 0
CONTENT = {
    "images": [
        {"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in (9, 4, 11, 30)
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [120, 50, 40, 30], "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [10, 10, 20, 20], "iscrowd": 1},
    ],
}


def detection(**changes: Any) -> dict[str, Any]:
    entry = {"image_id": 9, "category_id": 7, "bbox": [120, 50, 40, 30], "score": 0.04}
    return {**entry, **changes}


GOOD = [detection(), detection(image_id=4, category_id=3, score=1), detection(image_id=30)]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Reads results and annotations; bytes are written as they are."""

    def call(results: Any, annotations: Any = CONTENT) -> Any:
        for name, content in (("val.json", annotations), ("found.json", results)):
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / name).write_bytes(text)
        truth = read_annotations(tmp_path / "val.json")
        return truth, read_results(tmp_path / "found.json", truth)

    return call


def test_detections_are_ordered_by_image_and_joined(read) -> None:
    truth, results = read([{**entry, "segmentation": []} for entry in GOOD])
    assert list(truth.class_names.values()) == ["cat", "dog"]
    assert results.images.tolist() == [0, 1, 3]  # ids 4, 9, 30
    assert results.classes.tolist() == [0, 1, 1]
    assert results.scores.tolist() == [1, 0.04, 0.04]
    scenes = truth.scenes(results)
    assert (scenes.num_images, scenes.gt_images.tolist()) == (4, [0, 1])
    assert scenes.is_crowd.tolist() == [True, False]
    assert scenes.object_boxes.tolist() == [[120, 50, 40, 30]]
    assert results.notes == []


def test_a_file_name_counts_more_than_the_image_id(read) -> None:
    names = {9: "a/000004.jpg", 4: "000009.jpg", 11: "a/x.jpg", 30: "b/x.png"}
    images = [{**image, "file_name": names[image["id"]]} for image in CONTENT["images"]]
    found = [
        detection(image_id=4, file_name="000004.jpg"),  # as Ultralytics: image 9
        detection(image_id=11, file_name="x.jpg"),  # the name of two images
        detection(image_id=4, file_name="of another place.jpg"),
        detection(image_id="x", file_name="c/000009.png"),
    ]
    truth, results = read(found, {**CONTENT, "images": images})
    assert [list(truth.images)[i] for i in results.images] == [4, 4, 9, 11]


def corners(entry: dict) -> dict:
    x, y, width, height = entry["bbox"]
    return {**entry, "bbox": [x, y, x + width, y + height]}


MALFORMED = {
    "empty": (b"", "found.json is an empty file"),
    "not json": (b"[{", "found.json is not valid json"),
    "no list": ({"results": GOOD}, "found.json holds a dict: COCO's results are a list"),
    "annotations": (CONTENT, "found.json is a file of annotations, and no results"),
    "nothing": ([], "found.json has no detections: check the detector's score threshold"),
    "no object": ([GOOD[0], 3], "detection 1 in .*found.json is no object but 3"),
    "no score": (
        [GOOD[0], {k: v for k, v in GOOD[0].items() if k != "score"}],
        "detection 1 in .*found.json has no 'score'",
    ),
    "unknown image": (
        [*GOOD, detection(image_id=5)],
        r"detection 3 in .* image_id 5, .* 'images' of .*val.json \(ids from 4 to 30\)",
    ),
    "image name": ([detection(image_id="9")], "has the image_id '9', .* not names of files"),
    "a list as an id": ([detection(image_id=[9])], r"has the image_id \[9\], which is not"),
    "unknown category": (
        [*GOOD, detection(category_id=0)],
        "category_id 0, .* 'categories' .* not the detector's own class numbers",
    ),
    "true as an id": ([detection(category_id=True)], "has the category_id True"),
    "fractions": (
        [detection(bbox=[0.6, 0.5, 0.2, 0.3])],
        "all boxes in .*found.json lie between 0 and 1 .* write them in pixels",
    ),
    "fractions that leave the image": (
        [detection(bbox=[0.6, -0.02, 0.41, 0.3]), detection(bbox=[0, 0.5, 1.03, 0.5])],
        "all boxes in .*found.json lie between 0 and 1",
    ),
    "corners": ([corners(entry) for entry in 3 * GOOD], "9 of 9 boxes .* corners .* subtract x0"),
    "three numbers": ([*GOOD, detection(bbox=[1, 2, 3])], r"detection 3 .* bbox \[1, 2, 3\]"),
    "text in a box": ([detection(bbox=["1", 2, 3, 4])], "must be four finite numbers"),
    "no box": ([detection(bbox=None)], "has the bbox None"),
    "NaN in a box": ([detection(bbox=[1, 2, float("nan"), 4])], "bbox .1, 2, nan, 4.: it must"),
    "endless number": ([detection(bbox=[1, 2, 3, 10**400])], "four finite numbers"),
    "negative width": ([*GOOD, detection(bbox=[9, 9, -3, 4])], "detection 3 .* is negative"),
    "logits": ([*GOOD, detection(score=-3.2)], "detection 3 .* score -3.2: .* sigmoid"),
    "percent": ([detection(score=93)], "the score 93: .* divide percentages by 100"),
    "NaN score": ([*GOOD, detection(score=float("nan"))], "detection 3 .* has the score nan"),
    "text as score": ([detection(score="0.9")], "has the score '0.9'"),
    "a bool as score": ([*GOOD, detection(score=True)], "detection 3 .* has the score True"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_results_end_in_one_sentence(read, name: str) -> None:
    results, words = MALFORMED[name]
    with pytest.raises(DataError, match=words) as caught:
        read(results)
    assert "\n" not in str(caught.value) and "found.json" in str(caught.value)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        (GOOD, "val.json is a list, as a results file is, and no annotations"),
        (b"", "val.json is an empty file"),
        ({**CONTENT, "images": 2 * CONTENT["images"][:1]}, "has the image id 9 twice"),
        ({**CONTENT, "categories": []}, "the list 'categories' in .*val.json is empty"),
    ],
)
def test_malformed_annotations_end_in_one_sentence(read, annotations: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(GOOD, annotations)


def test_missing_file(read, tmp_path: Path) -> None:
    truth, _ = read(GOOD)
    with pytest.raises(DataError, match="none.json cannot be read .*: check the path"):
        read_results(tmp_path / "none.json", truth)


def test_capped_detections_are_told(read) -> None:
    many = [detection(image_id=i, score=s) for i in (9, 4, 11) for s in np.linspace(0.3, 1, 20)]
    (note,) = read([*many, detection(image_id=30, score=0.001)])[1].notes
    assert note.startswith("most images have exactly 20 detections, and none has more")
    # One fewer in two of them: no limit
    assert read([*many[1:-1], detection(image_id=30, score=0.001)])[1].notes == []
    # The lowest score of the images at the limit says nothing
    (note,) = read([*many, *many[:20]])[1].notes[:1]
    assert "exactly" not in note


def test_a_high_score_threshold_and_images_without_detections_are_told(read) -> None:
    entries = [detection(score=0.25), detection(score=0.9), detection(image_id=4, score=1)]
    high, few = read(entries)[1].notes
    assert high.startswith("the lowest score is 0.25: if the detector leaves out lower ones")
    assert few.startswith("only 2 of 4 images have detections")
