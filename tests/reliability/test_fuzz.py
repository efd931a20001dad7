"""Whatever comes in, it is matched, read or refused: no other exception, nothing infinite.

Each test is also a target of fuzz.py, which runs it for as long as is asked for.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from onenet.data.bccd import load_voc_boxes
from onenet.data.coco_json import register_coco_json
from onenet.data.crowdhuman import convert_odgt
from onenet.modeling.center_sampling import match_centers
from onenet.modeling.criterion import Criterion
from onenet.modeling.matcher import HungarianMatcher, MinCostMatcher
from onenet.modeling.postprocess import best_pairs, select_candidates, select_top_k, to_instances
from onenet.modeling.rescoring import Rescoring
from onenet.structures import DensePredictions, Targets
from onenet.utils.errors import DataError


def budget(max_examples: int) -> settings:
    """The same examples in each run."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# Predictions and objects

ANY_FLOAT = st.one_of(
    st.floats(-100, 100, width=32),
    st.floats(width=32),  # nan, inf and the largest among them
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45]),
)


def arrays(shape: tuple[int, ...], elements: st.SearchStrategy[float]) -> st.SearchStrategy:
    return npst.arrays(np.float32, shape, elements=elements).map(torch.from_numpy)


@st.composite
def predictions(draw, num_images, logits, coordinates) -> DensePredictions:
    num_samples, num_classes = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3, 20]))
    pair = (
        draw(arrays((num_images, num_samples, num_classes), logits)),
        draw(arrays((num_images, num_samples, 4), coordinates)),
    )
    side = math.ceil(math.sqrt(num_samples))
    places = torch.arange(num_samples)
    centers = torch.stack((places % side, places // side), dim=1) * 8.0 + 4.0
    anchors = torch.cat((centers - 4, centers + 4), dim=1)
    return DensePredictions.from_boxes(*pair, anchors, (num_samples,))


@st.composite
def objects(draw, num_classes: int, corners: st.SearchStrategy | None = None) -> Instances:
    """Of one image: boxes of some area inside it, or of any corners."""
    height, width = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    num_gt = draw(st.integers(0, 12))
    if corners is None:
        parts = draw(arrays((num_gt, 4), st.floats(0, 1, width=32)))
        low = parts[:, :2] * 0.9 * torch.tensor([width, height])
        sizes = (0.001 + 0.099 * parts[:, 2:]) * torch.tensor([width, height])
        boxes = torch.cat((low, low + sizes), dim=1)
    else:
        boxes = draw(arrays((num_gt, 4), corners))
    classes = draw(npst.arrays(np.int64, num_gt, elements=st.integers(0, num_classes - 1)))
    return Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.from_numpy(classes))


def _check_pairs(samples: torch.Tensor, gt_indices: torch.Tensor, num_samples: int, n: int) -> None:
    assert samples.dtype == gt_indices.dtype == torch.int64 and len(samples) == len(gt_indices)
    assert ((samples >= 0) & (samples < num_samples)).all()
    assert ((gt_indices >= 0) & (gt_indices < n)).all() and (gt_indices.diff() >= 0).all()


@budget(150)
@given(st.data())
def test_matchers(data: st.DataObject) -> None:
    num_images = data.draw(st.integers(1, 3))
    batch = data.draw(predictions(num_images, ANY_FLOAT, ANY_FLOAT))
    num_samples, num_classes = batch.pred_logits.shape[1:]
    corners = data.draw(st.sampled_from([None, ANY_FLOAT]))
    gt = [data.draw(objects(num_classes, corners)) for _ in range(num_images)]
    for matcher in (MinCostMatcher(), HungarianMatcher()):
        for image, (samples, gt_indices) in zip(gt, matcher(batch, gt), strict=True):
            _check_pairs(samples, gt_indices, num_samples, len(image))
            if isinstance(matcher, MinCostMatcher):
                assert gt_indices.tolist() == list(range(len(image)))
            else:
                assert len(samples.unique()) == len(gt_indices.unique()) == len(samples)
        for i, (samples, gt_indices) in enumerate(matcher(batch, gt)):
            cost = matcher.cost(batch.pred_logits[i], batch.pred_boxes[i], batch.anchors, gt[i])
            cost = cost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
            taken = cost[samples, gt_indices]
            if isinstance(matcher, MinCostMatcher):
                torch.testing.assert_close(taken, cost.amin(dim=0))
            else:
                assert taken.isfinite().all()
    targets = Targets.from_instances(gt, torch.device("cpu"))
    matches = match_centers(batch, targets, data.draw(st.sampled_from([0.5, 1.5, 1e9])))
    for image, (samples, gt_indices) in zip(gt, matches.by_image(targets.counts), strict=True):
        _check_pairs(samples, gt_indices.sort().values, num_samples, len(image))
        assert len(samples.unique()) == len(samples)
        assert len(samples) > 0 or len(image) == 0 or corners is not None


@budget(100)
@given(st.data())
def test_criterion(data: st.DataObject) -> None:
    num_images = data.draw(st.integers(1, 3))
    finite = {
        "logits": st.floats(-1e4, 1e4, width=32),
        "coordinates": st.floats(-1e5, 1e5, width=32),
    }
    batch = data.draw(predictions(num_images, **finite))
    corners = batch.pred_boxes.unflatten(-1, (2, 2)).sort(dim=-2).values.flatten(-2)
    batch.pred_boxes.copy_(corners)  # as the heads make them; of no width or height at times
    gt = [data.draw(objects(batch.pred_logits.shape[2])) for _ in range(num_images)]
    leaves = [batch.pred_logits.requires_grad_(), batch.pred_boxes.requires_grad_()]
    rescored = None
    if data.draw(st.booleans()):
        best = select_candidates(batch, data.draw(st.integers(1, 40)))
        leaves.append(data.draw(arrays(best.logits.shape, finite["logits"])).requires_grad_())
        rescored = best._replace(logits=leaves[-1])
    criterion = Criterion(
        matcher=data.draw(st.sampled_from([MinCostMatcher, HungarianMatcher]))(),
        soft_negatives=data.draw(st.booleans()),
        center_radius=data.draw(st.sampled_from([0.0, 0.5, 1.5])),
    )
    losses = criterion(batch, gt, rescored)
    # What the positives would have as negatives is added and taken off again, rounded
    least = -1e-6 * leaves[0].abs().sum()
    assert all(loss.isfinite() and loss >= least for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@budget(200)
@given(st.data())
def test_top_k(data: st.DataObject) -> None:
    values = data.draw(st.sampled_from([ANY_FLOAT, st.sampled_from([0.0, 1.0, math.nan])]))
    batch = data.draw(predictions(data.draw(st.integers(1, 3)), values, ANY_FLOAT))
    num_images, num_samples, num_classes = batch.pred_logits.shape
    k = data.draw(st.integers(1, 40))
    scores, classes, boxes = select_top_k(batch, k)
    _, pairs = best_pairs(batch.pred_logits, k)
    assert all(len(row.unique()) == len(row) for row in pairs)  # also of equal logits
    rows = min(k, num_samples * num_classes)
    assert scores.shape == classes.shape == (num_images, rows) and boxes.shape[1:] == (rows, 4)
    nms = data.draw(st.sampled_from([None, 0.6]))
    found = to_instances(scores, classes, boxes, [(100, 200)] * num_images, nms)
    for i in range(num_images):
        flat = batch.pred_logits[i].flatten().double()
        best = flat.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        expected = best.sort(descending=True).values[:rows].float().sigmoid()
        torch.testing.assert_close(scores[i], expected, rtol=1e-6, atol=0)
        assert ((classes[i] >= 0) & (classes[i] < num_classes)).all()
        assert found[i].pred_boxes.tensor.isfinite().all() and found[i].scores.isfinite().all()
        finite = boxes[i].isfinite().all(dim=1).sum()
        assert len(found[i]) == finite if nms is None else len(found[i]) <= finite


@budget(100)
@given(st.data())
def test_rescoring(data: st.DataObject) -> None:
    """What is no number stays alone with that, in the weights' gradient too."""
    batch = data.draw(predictions(data.draw(st.integers(1, 3)), ANY_FLOAT, ANY_FLOAT))
    num_images, num_samples, num_classes = batch.pred_logits.shape
    rescoring = Rescoring(data.draw(st.integers(1, 40)))
    scores, classes, boxes = select_top_k(batch, data.draw(st.integers(1, 40)), rescoring)
    assert scores.shape == classes.shape == boxes.shape[:2] and not scores.isnan().any()
    assert (scores.diff() <= 0).all() and ((classes >= 0) & (classes < num_classes)).all()
    candidates = select_candidates(batch, 40)
    logits = rescoring(candidates)
    assert torch.equal(logits.isfinite(), candidates.logits.isfinite())
    logits[logits.isfinite()].clamp(-1e4, 1e4).sum().backward()
    assert all(p.grad.isfinite().all() for p in rescoring.parameters())


# Annotations

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 5),
        st.integers(),
        st.sampled_from([10**400, -(2**63), 1e308, math.nan, math.inf, -math.inf]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["a.png", "../a.png", "/", "\0", "\ud800", "RBC", "person"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.sampled_from(["id", "counts", "size", "ignore", "a"]), inner, max_size=3
        ),
    ),
    max_leaves=8,
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key) of a tree of lists and dicts."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


@st.composite
def mutated(draw, content: Any) -> Any:
    """The content with some values replaced, removed or doubled."""
    root = [json.loads(json.dumps(content))]
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(list(_places(root))))
        action = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if container is root or action == "replace":
            container[key] = draw(JSON)
        elif action == "remove":
            del container[key]
        elif isinstance(container, list):
            container.append(container[key])
        else:
            container[draw(st.sampled_from(["id", "segmentation", "keypoints"]))] = container[key]
        if not root:
            return None
    return root[0]


@st.composite
def edited(draw, text: bytes) -> bytes:
    """Bytes with some of them changed, cut off or put in."""
    result = bytearray(text)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(result)))
        end = min(start + draw(st.integers(0, 8)), len(result))
        result[start:end] = draw(st.binary(max_size=8))
    return bytes(result[: draw(st.integers(0, len(result)))] if draw(st.booleans()) else result)


@contextlib.contextmanager
def folder_with_image() -> Iterator[Path]:
    """A folder with a.png and a.jpg, of 32 x 24 pixels."""
    folder = Path(tempfile.mkdtemp(prefix="onenet_fuzz_"))
    try:
        for name in ("a.png", "a.jpg"):
            Image.new("RGB", (32, 24)).save(folder / name)
        yield folder
    finally:
        shutil.rmtree(folder)


RLE = {"counts": [3, 5, 760], "size": [24, 32]}
BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0}
COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 2, "file_name": "a.jpg", "width": 32, "height": 24},
    ],
    "annotations": [
        {**BOX, "id": 1, "segmentation": [[1, 2, 9, 2, 9, 8]]},
        {**BOX, "id": 2, "iscrowd": 1, "segmentation": RLE},
        {**BOX, "id": 3, "keypoints": [1, 2, 2]},
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
}


@budget(300)
@given(st.one_of(mutated(COCO), edited(json.dumps(COCO).encode())))
def test_coco_json(content: Any) -> None:
    with folder_with_image() as folder:
        path = folder / "set.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            name = register_coco_json(str(path), str(folder))
        except DataError as error:
            assert str(path) in str(error) or str(folder) in str(error)
            return
        try:
            records = DatasetCatalog.get(name)
            read = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
            assert len(MetadataCatalog.get(name).thing_classes) >= 1
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        for annotation in read["annotations"]:  # which COCOeval calculates with
            assert math.isfinite(annotation["area"]) and annotation["iscrowd"] in (0, 1)
        for record in records:
            for annotation in record["annotations"]:
                assert np.isfinite(np.array(annotation["bbox"], dtype=float)).all()


ODGT = [
    {
        "ID": "a",
        "gtboxes": [
            {"tag": "person", "fbox": [1, 2, 9, 8], "vbox": [2, 2, 5, 5], "extra": {"ignore": 0}},
            {"tag": "mask", "fbox": [1, 2, 9, 8], "head_attr": {}, "extra": {"ignore": 1}},
        ],
    }
]


@budget(300)
@given(st.one_of(mutated(ODGT), edited(json.dumps(ODGT[0]).encode())))
def test_odgt(content: Any) -> None:
    with folder_with_image() as folder:
        path = folder / "set.odgt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            lines = content if isinstance(content, list) else [content]
            path.write_text("\n".join(json.dumps(line) for line in lines))
        try:
            converted = convert_odgt(str(path), str(folder))
        except DataError as error:
            assert str(folder) in str(error)
            return
        for annotation in converted["annotations"]:
            assert np.isfinite(np.array(annotation["bbox"], dtype=float)).all()
            assert math.isfinite(annotation["area"])


VOC = """<annotation><filename>a.jpg</filename>
<size><width>32</width><height>24</height><depth>3</depth></size>
<object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>
</object><object><name>WBC</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>30</xmax><ymax>24</ymax>
</bndbox></object></annotation>"""
WORDS = [
    "nan",
    "inf",
    "-1",
    "1e999",
    "1_0",
    "9" * 5000,
    "",
    "١",
    "RBC",
    "&amp;",
    "<a/>",
    "0x1",
    "-",
]


@st.composite
def voc_xml(draw) -> bytes:
    """The file with some texts between its tags replaced, or some bytes."""
    parts = VOC.split(">")
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(parts) - 2))
        _, tag, rest = parts[index].partition("<")
        parts[index] = draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=6))) + tag + rest
    return draw(edited(">".join(parts).encode("utf-8", "surrogatepass")))


@budget(250)
@given(voc_xml())
def test_voc(xml: bytes) -> None:
    with folder_with_image() as folder:
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / name).mkdir(parents=True)
        (folder / "a.jpg").rename(folder / "JPEGImages" / "a.jpg")
        (folder / "ImageSets" / "Main" / "all.txt").write_text("a")
        (folder / "Annotations" / "a.xml").write_bytes(xml)
        try:
            (record,) = load_voc_boxes(str(folder), "all", ["RBC", "WBC"])
        except DataError as error:
            assert "a.xml" in str(error)
            return
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            assert 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
