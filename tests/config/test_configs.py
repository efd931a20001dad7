"""Every config: plain yaml, builds, trains a step, detects; and says what was published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from onenet.config import add_onenet_config
from onenet.engine import load_config
from onenet.engine.solver import build_optimizer
from onenet.utils.errors import ConfigError, DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Those in compare/ are plans of tools/compare.py.
ALL_YAML = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "compare")
# Of one folder each; above them lie parts alone.
MODELS = [p for p in ALL_YAML if p.parent != CONFIGS and not p.name.startswith("Base")]
LAZY = sorted(p for p in (CONFIGS / "lazy").glob("*.py") if p.name != "common.py")
ONE_CLASS = [  # no dataset tells it
    word for node in ("ONENET", "FCOS", "RETINANET") for word in (f"MODEL.{node}.NUM_CLASSES", "1")
]


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def load(path: Path, *opts: str):
    classes = ONE_CLASS if path.parent.name in ("own_data", "photos") else []
    return load_config(str(path), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *classes, *opts])


def small_batch(make_gt, num_classes: int = 1) -> list[dict]:
    sizes = [(64, 96), (80, 64)]
    return [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
            "instances": make_gt(num_gt, size, num_classes),
            "height": 2 * size[0],
            "width": 2 * size[1],
        }
        for size, num_gt in zip(sizes, (3, 0), strict=True)
    ]


@pytest.mark.parametrize("path", ALL_YAML, ids=name_of)
def test_yaml_is_plain_and_short(path: Path) -> None:
    content = path.read_text()
    yaml.safe_load(content)
    assert len(content.splitlines()) <= 50


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_one_step_of_training_and_inference(path: Path, make_gt) -> None:
    cfg = load(path)
    model = build_model(cfg)
    batch = small_batch(make_gt)
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        losses = model.train()(batch)
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(batch)
    for output, record in zip(outputs, batch, strict=True):
        instances = output["instances"]
        assert instances.image_size == (record["height"], record["width"])
        assert len(instances) <= cfg.TEST.DETECTIONS_PER_IMAGE
        assert (instances.scores.diff() <= 0).all()


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_builds_by_detectron2s_own_means(path: Path) -> None:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(ONE_CLASS)  # load_config takes the number from the data
    build_model(cfg)


COMMON = {"optimizer": "AdamW", "weight_decay": 1e-4, "warmup": (1000, 0.01), "format": "RGB"}
SMALL = {"sizes": range(416, 513, 32), "max": 853, "test": (512, 853), "crop": True, "clip": False}
LARGE = {"sizes": range(640, 897, 32), "max": 1500, "test": (800, 1333), "crop": True, "clip": True}
CROWD = {**LARGE, "max": 1400, "test": (800, 1400), "crop": False}
POINT = {"batch": 64, "lr": 5e-5, "schedule": (270000, (210000, 250000)), **SMALL}
FPN = {"batch": 16, "lr": 4e-5, "schedule": (270000, (210000, 250000)), **LARGE}
CROWD_FPN = {"batch": 16, "lr": 4e-5, "schedule": (46875, (37500,)), **CROWD}
PUBLISHED = {
    "coco/onenet_point_R18_dcn.yaml": (POINT, 18, "PointHead", True),
    "coco/onenet_point_R18_nodcn.yaml": (POINT, 18, "PointHead", False),
    "coco/onenet_point_R50_dcn.yaml": (POINT, 50, "PointHead", True),
    "coco/onenet_point_R50_nodcn.yaml": (POINT, 50, "PointHead", False),
    "coco/onenet_retinanet_R50_FPN.yaml": (FPN, 50, "RetinaNetHead", None),
    "coco/onenet_fcos_R50_FPN.yaml": (FPN, 50, "FCOSHead", None),
    "crowdhuman/onenet_retinanet_R50_FPN.yaml": (CROWD_FPN, 50, "RetinaNetHead", None),
    "crowdhuman/onenet_fcos_R50_FPN.yaml": (CROWD_FPN, 50, "FCOSHead", None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    settings, depth, head, deform = PUBLISHED[name]
    cfg = load(CONFIGS / name)
    solver, inputs, onenet = cfg.SOLVER, cfg.INPUT, cfg.MODEL.ONENET
    found = {
        "optimizer": solver.OPTIMIZER,
        "weight_decay": solver.WEIGHT_DECAY,
        "warmup": (solver.WARMUP_ITERS, solver.WARMUP_FACTOR),
        "format": inputs.FORMAT,
        "batch": solver.IMS_PER_BATCH,
        "lr": solver.BASE_LR,
        "schedule": (solver.MAX_ITER, solver.STEPS),
        "sizes": tuple(inputs.MIN_SIZE_TRAIN),
        "max": inputs.MAX_SIZE_TRAIN,
        "test": (inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST),
        "crop": inputs.CROP.ENABLED,
        "clip": solver.CLIP_GRADIENTS.ENABLED,
    }
    assert found == {**COMMON, **settings, "sizes": tuple(settings["sizes"])}
    assert solver.WEIGHT_DECAY_NORM == 1e-4
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        clip = cfg.SOLVER.CLIP_GRADIENTS
        assert (clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) == ("full_model", 1.0, 2.0)
    assert (inputs.CROP.TYPE, list(inputs.CROP.SIZE)) == ("absolute_range", [384, 600])
    assert (tuple(inputs.CROP.MIN_SIZES), inputs.CROP.PROB) == ((400, 500, 600), 0.5)
    assert tuple(cfg.MODEL.PIXEL_MEAN) == (123.675, 116.28, 103.53)
    assert tuple(cfg.MODEL.PIXEL_STD) == (58.395, 57.12, 57.375)
    assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert (cfg.MODEL.RESNETS.DEPTH, onenet.HEAD.NAME) == (depth, head)
    point = head == "PointHead"
    assert cfg.MODEL.RESNETS.NORM == ("BN" if point else "FrozenBN")
    assert cfg.MODEL.BACKBONE.FREEZE_AT == (0 if point else 2)
    if point:
        assert onenet.DECONV.DEFORM == deform
    crowd = name.startswith("crowdhuman")
    assert cfg.TEST.DETECTIONS_PER_IMAGE == (500 if crowd else 100)
    assert onenet.NUM_CLASSES == (1 if crowd else 80)


@pytest.mark.parametrize("path", LAZY, ids=name_of)
def test_lazy_twin_is_the_yaml_model(path: Path, make_gt) -> None:
    twin = CONFIGS / "coco" / f"{path.stem}.yaml"
    cfg, lazy = load(twin), LazyConfig.load(str(path))
    model, lazy_model = build_model(cfg).eval(), instantiate(lazy.model).eval()
    lazy_model.load_state_dict(model.state_dict())  # the same names and shapes
    batch = small_batch(make_gt)
    with torch.no_grad():
        (a, _), (b, _) = model(batch), lazy_model(batch)
    torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
    torch.testing.assert_close(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)

    lazy.optimizer.params.model = lazy_model
    optimizer, reference = instantiate(lazy.optimizer), build_optimizer(cfg, model)
    assert type(optimizer) is type(reference)
    group, expected = optimizer.param_groups[0], reference.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (expected["lr"], expected["weight_decay"])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(
        len(g["params"]) for g in reference.param_groups
    )
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    resize = lazy.dataloader.train.mapper.augmentations[1]
    assert tuple(resize.short_edge_length) == tuple(cfg.INPUT.MIN_SIZE_TRAIN)
    assert resize.max_size == cfg.INPUT.MAX_SIZE_TRAIN
    resize = lazy.dataloader.test.mapper.augmentations[0]
    assert (resize.short_edge_length, resize.max_size) == (
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
    )
    schedule = instantiate(lazy.lr_multiplier)
    assert schedule(0.0) == pytest.approx(0.01)
    assert [schedule(x / 270000) for x in (5000, 220000, 260000)] == pytest.approx([1, 0.1, 0.01])


def test_checkpoint_passes_from_yaml_to_lazy(tmp_path: Path) -> None:
    model = build_model(load(CONFIGS / "coco" / "onenet_fcos_R50_FPN.yaml"))
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    lazy = LazyConfig.load(str(CONFIGS / "lazy" / "onenet_fcos_R50_FPN.py"))
    lazy_model = instantiate(lazy.model)
    DetectionCheckpointer(lazy_model).load(str(tmp_path / "model.pth"))
    loaded = lazy_model.state_dict()
    assert all(torch.equal(loaded[name], value.cpu()) for name, value in model.state_dict().items())


DIGITS = str(CONFIGS / "digits" / "onenet_fcos_R18_FPN.yaml")


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        ("no/such.yaml", [], "Config or checkpoint: there is no file 'no/such.yaml'"),
        (DIGITS, ["SOLVER.MAX_ITR", "5"], r"no key SOLVER.MAX_ITR; did you mean SOLVER.MAX_ITER\?"),
        (DIGITS, ["MODEL.ONENET.HEAD.NAME"], "on the command line: MODEL.* has no value; give KEY"),
        (
            DIGITS,
            ["SOLVER.MAX_ITER", "many"],
            "MAX_ITER is 'many'; give a whole number, as 2700 is",
        ),
        (DIGITS, ["MODEL.ONENET.NUM_CLASSES", "7"], "NUM_CLASSES is 7, but .*digits.* has 10"),
        (DIGITS, ["DATASETS.TRAIN", "('nowhere',)"], "names 'nowhere', which is not registered"),
        (DIGITS, ["DATASETS.TRAIN_JSON", "x.json"], "needs both"),
        (DIGITS, ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "AMP.ENABLED needs a GPU"),
        (DIGITS, ["MODEL.META_ARCHITECTURE", "TwoNet"], "META_ARCHITECTURE is 'TwoNet'.*OneNet"),
        (DIGITS, ["MODEL.BACKBONE.NAME", "build_it"], "BACKBONE.NAME is 'build_it'.*resnet"),
    ],
)
def test_config_errors_name_key_and_cure(config: str, opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config, opts)


def test_overrides_become_what_the_key_holds() -> None:
    cfg = load_config(DIGITS, ["SOLVER.BASE_LR", "1", "INPUT.MIN_SIZE_TRAIN", "96"])
    assert cfg.SOLVER.BASE_LR == 1.0 and cfg.INPUT.MIN_SIZE_TRAIN == (96,)


def test_train_and_test_classes_must_agree() -> None:
    with pytest.raises(DataError, match="digits_train and bccd_val differ in their classes"):
        load_config(DIGITS, ["DATASETS.TEST", "('bccd_val',)"])


def test_evaluation_alone_asks_nothing_of_the_training_set() -> None:
    opts = ["DATASETS.TRAIN_JSON", "gone.json", "DATASETS.TRAIN_IMAGE_ROOT", "gone"]
    cfg = load_config(DIGITS, [*opts, "DATASETS.TEST", "('bccd_val',)"], eval_only=True)
    assert cfg.MODEL.ONENET.NUM_CLASSES == 3
    build_model(cfg)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        load_config(DIGITS, ["DATASETS.TEST", "()"], eval_only=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MODEL: !!python/object/apply:os.system ['true']", "no plain yaml"),
        ("MODEL: [unclosed", "no plain yaml"),
        ("MODEL:\n  ONENET:\n    HEAD: 3\n", "no valid config"),
        ("MODEL:\n  ONENET:\n    LEG: 3\n", "no valid config: .*LEG"),
        ("_BASE_: nowhere.yaml", "no valid config: .*nowhere.yaml"),
        ("just a sentence", "no valid config"),
        ("", "no valid config"),
    ],
)
def test_bad_yaml_is_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(path))
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ONENET.IN_FEATURES", "['p3', 'p9']"], r"IN_FEATURES names \['p9'\]; .*p2"),
        (["MODEL.ONENET.HEAD.NAME", "PointHead"], "takes one feature map, .* names 4"),
    ],
)
def test_model_that_does_not_fit_together(opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(load_config(DIGITS, opts))


def test_cpu_where_there_is_no_gpu() -> None:
    cfg = load_config(DIGITS)
    assert cfg.MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")
    assert cfg.is_frozen()


def test_learning_rate_follows_the_batch(tmp_path: Path) -> None:
    path = CONFIGS / "digits" / "onenet_fcos_R18_FPN.yaml"
    opts = ("SOLVER.BASE_LR", "0.002", "SOLVER.IMS_PER_BATCH", "4")
    assert load(path, *opts).SOLVER.BASE_LR == 0.002
    cfg = load(path, *opts, "SOLVER.REFERENCE_BATCH", "16")
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.001)
    # Once only: the config that a run writes down says what it was trained with
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load(tmp_path / "config.yaml").SOLVER.BASE_LR == pytest.approx(0.001)
    with pytest.raises(ConfigError, match="REFERENCE_BATCH is -1; give 0 or more"):
        load(path, "SOLVER.REFERENCE_BATCH", "-1")


def test_color_jitter_is_a_share() -> None:
    path = CONFIGS / "digits" / "onenet_fcos_R18_FPN.yaml"
    for value in ("1.5", "-0.1"):
        with pytest.raises(ConfigError, match=f"COLOR_JITTER.CONTRAST is {value}; give a number"):
            load(path, "INPUT.COLOR_JITTER.CONTRAST", value)


CANDIDATES = ("MODEL.ONENET.RESCORING.CANDIDATES",)


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        ((*CANDIDATES, "-1"), "CANDIDATES is -1"),
        ((*CANDIDATES, "20", "MODEL.ONENET.RESCORING.INIT", "tree"), "INIT is 'tree'"),
        (("MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS", "-1.0"), "CENTER_RADIUS is -1"),
        (
            (
                "MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS",
                "1.5",
                "MODEL.ONENET.HEAD.NAME",
                "RetinaNetHead",
            ),
            "anchors of the RetinaNetHead are not",
        ),
        (("SOLVER.EMA_DECAY", "1.5"), "EMA_DECAY is 1.5"),
        (("INPUT.FORMAT", "YUV-BT.601"), "INPUT.FORMAT is 'YUV-BT.601'; choose one of BGR, RGB"),
        (("SOLVER.EMA_DECAY", "0.9", "TEST.PRECISE_BN.ENABLED", "True"), "PRECISE_BN"),
        (("SOLVER.IMS_PER_BATCH", "0"), "IMS_PER_BATCH is 0"),
    ],
)
def test_new_keys_are_checked_when_loaded(opts: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(CONFIGS / "digits" / "onenet_fcos_R18_FPN.yaml", *opts)
