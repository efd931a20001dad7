"""Training end to end on a tiny set: from the command line, resumed, evaluated; and its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from tiny_runs import CONFIG, ROOT, TINY

from onenet.config import add_onenet_config
from onenet.data.coco_json import register_coco_json
from onenet.engine import Trainer, check_limits, load_config
from onenet.modeling.meta_arch import OneNet
from onenet.utils.errors import LimitError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_unseen_json_trains_and_evaluates(train_net, data_opts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_net(
        "--config-file", CONFIG, *data_opts, *TINY, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(out)
    )
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert "bbox/AP" in metrics[-1] and "end_to_end/NMS_gap" in metrics[-1]
    assert not any("nms_off" in key for key in metrics[-1])  # OneNet carries none
    state = weights(out)
    assert state["head.cls_score.weight"].shape[0] == 2  # classes counted in the json
    dumped = (out / "config.yaml").read_text()
    assert "NUM_CLASSES: 2" in dumped

    detections = out / "inference" / "coco_instances_results.json"
    detections.unlink()
    train_net(
        "--config-file", CONFIG, "--eval-only", *data_opts[4:], *TINY,
        "MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(out),
    )  # fmt: skip
    # Written back in the json's own category ids
    assert {d["category_id"] for d in json.loads(detections.read_text())} <= {3, 4}


def test_resume_continues_the_same_run(train_net, data_opts, tmp_path: Path) -> None:
    """Stopped at 4 of 8 and resumed: the weights of an undisturbed run.

    tests/reliability has the same to the bit, which needs a process with a single thread.
    """
    common = ["--config-file", CONFIG, *data_opts, *TINY, "SOLVER.CHECKPOINT_PERIOD", "4"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_net(*common, "SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(whole))
    # What a run looks like that was killed after iteration 4
    for name in ("model_0000003.pth", "last_checkpoint"):
        stopped.mkdir(exist_ok=True)
        (stopped / name).write_bytes((whole / name).read_bytes())
    (stopped / "last_checkpoint").write_text("model_0000003.pth")
    resume = ["--resume", *common, "SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(stopped)]
    train_net(*resume)

    assert "Starting training from iteration 4" in (stopped / "log.txt").read_text()
    expected, found = weights(whole), weights(stopped)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    last = [
        torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
        for folder in (whole, stopped)
    ]
    assert last[0]["iteration"] == last[1]["iteration"] == 7
    train_net(*resume)  # a finished run only evaluates


def test_gradient_accumulation(train_net, data_opts, tmp_path: Path) -> None:
    """The same steps as with the whole batch, but for rounding."""
    common = ["--config-file", CONFIG, *data_opts, *TINY, "MODEL.RESNETS.NORM", "FrozenBN"]
    common += ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.001", "SOLVER.MAX_ITER", "3"]
    metrics = []
    for steps in ("1", "2"):
        out = tmp_path / steps
        pieces = ["SOLVER.GRADIENT_ACCUMULATION_STEPS", steps]
        train_net(*common, *pieces, "OUTPUT_DIR", str(out))
        metrics.append(json.loads((out / "metrics.json").read_text().splitlines()[0]))
    for name in ("loss_cls", "loss_l1", "loss_giou", "total_loss"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-3)
    whole, in_pieces = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert whole.keys() == in_pieces.keys()
    for name, value in whole.items():
        torch.testing.assert_close(in_pieces[name], value, rtol=1e-3, atol=1e-5, msg=name)

    # A batch that is scaled to fewer workers than it is meant for
    scaled = ["SOLVER.REFERENCE_WORLD_SIZE", "2", "SOLVER.IMS_PER_BATCH", "8"]
    told = sentence(train_net, *common[2:], *scaled, "SOLVER.GRADIENT_ACCUMULATION_STEPS", "5")
    assert "STEPS is 5; give a number from 1 to 4, the images of a worker's batch" in told


@pytest.mark.parametrize("detector", ["fcos", "retinanet"])
def test_gradient_accumulation_of_baselines(
    train_net, data_opts, tmp_path: Path, detector: str
) -> None:
    config = str(Path(CONFIG).with_name(f"baseline_{detector}_R18_FPN.yaml"))
    pieces = ["SOLVER.GRADIENT_ACCUMULATION_STEPS", "2", "SOLVER.MAX_ITER", "2"]
    pieces += ["MODEL.RETINANET.NUM_CLASSES", "2"]
    words = ["--config-file", config, *data_opts, *TINY, *pieces, "OUTPUT_DIR", str(tmp_path)]
    train_net(*words)
    assert (tmp_path / "model_final.pth").is_file()


def test_the_trainers_model_is_the_detector(data_opts, tmp_path: Path) -> None:
    pieces = ["SOLVER.GRADIENT_ACCUMULATION_STEPS", "2", "SOLVER.MAX_ITER", "1"]
    words = [*data_opts, *TINY, *pieces, "VIS_PERIOD", "1", "OUTPUT_DIR", str(tmp_path)]
    trainer = Trainer(load_config(CONFIG, words))
    assert isinstance(trainer.model, OneNet)
    trainer.model = trainer.model  # a subclass may compile it, for instance
    with mock.patch("onenet.engine.training_pictures.put_pictures") as put_pictures:
        trainer.train()
    ((model, inputs),) = (call.args for call in put_pictures.call_args_list)
    assert model is trainer.model and len(inputs) == 1 and not model._forward_pre_hooks
    results = Trainer.test(trainer.cfg, trainer.model)
    assert "AP" in results["bbox"]


def test_the_average_is_saved_evaluated_and_resumed(
    train_net, data_opts, tmp_path: Path, monkeypatch
) -> None:
    tested = []
    test = Trainer.test.__func__

    def watched(cls, cfg, model, evaluators=None):
        tested.append({name: value.clone() for name, value in model.state_dict().items()})
        return test(cls, cfg, model, evaluators)

    monkeypatch.setattr(Trainer, "test", classmethod(watched))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    words = ("--config-file", CONFIG, *data_opts, *TINY, "SOLVER.EMA_DECAY", "0.6")
    words += ("SOLVER.BASE_LR", "0.01", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    train_net(*words, "OUTPUT_DIR", str(whole))
    content = torch.load(whole / "model_final.pth", weights_only=True)
    average, trained = content["model"], content["trainer"]["hooks"]["EMAHook"]
    assert trained["steps"] == 4
    key = "head.cls_score.weight"
    assert not torch.equal(average[key], trained[f"model.{key}"])
    assert all(torch.equal(average[name], tested[-1][name]) for name in average)

    # Interrupted after the checkpoint of the second iteration
    halves.mkdir()
    (halves / "model_0000001.pth").write_bytes((whole / "model_0000001.pth").read_bytes())
    (halves / "last_checkpoint").write_text("model_0000001.pth")
    train_net("--resume", *words, "OUTPUT_DIR", str(halves))
    again = torch.load(halves / "model_final.pth", weights_only=True)
    assert again["trainer"]["hooks"]["EMAHook"]["steps"] == 4
    torch.testing.assert_close(again["model"], average, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again["trainer"]["hooks"]["EMAHook"], trained, rtol=1e-3, atol=1e-4)

    # A new training starts from the average, whichever of the two it has
    train_net(
        *words[:-6], "SOLVER.BASE_LR", "1e-12", "SOLVER.MAX_ITER", "1",
        "MODEL.WEIGHTS", str(whole / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "new"),
    )  # fmt: skip
    new = torch.load(tmp_path / "new" / "model_final.pth", weights_only=True)
    torch.testing.assert_close(new["model"][key], average[key])
    torch.testing.assert_close(new["trainer"]["hooks"]["EMAHook"][f"model.{key}"], average[key])


def test_ctrl_c_tells_how_to_go_on(train_net, data_opts, tmp_path: Path, monkeypatch) -> None:
    step = Trainer.run_step

    def interrupted(trainer: Trainer) -> None:
        if trainer.iter == 1:
            raise KeyboardInterrupt
        step(trainer)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    words = [*data_opts, *TINY, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1"]
    with pytest.raises(SystemExit) as stopped:
        train_net("--config-file", CONFIG, *words, "OUTPUT_DIR", str(tmp_path))
    assert stopped.value.code == 130
    assert (
        f"--resume goes on from {tmp_path}/model_0000000.pth" in (tmp_path / "log.txt").read_text()
    )


def test_a_run_without_evaluation(train_net, data_opts, tmp_path: Path) -> None:
    train_only = [*data_opts[:4], "OUTPUT_DIR", str(tmp_path / "out")]
    train_net("--config-file", CONFIG, *train_only, *TINY, "SOLVER.MAX_ITER", "1")


def sentence(train_net, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        train_net("--config-file", CONFIG, *words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_errors_are_one_sentence(train_net, data_opts, coco_set, tmp_path: Path, capsys) -> None:
    out = ["OUTPUT_DIR", str(tmp_path / "out")]
    message = sentence(train_net, *data_opts, *out, "MODEL.WEIGHTS", "no/such.pth")
    assert "there is no file 'no/such.pth'" in message

    for key, registry in (("HEAD", "PointHead"), ("MATCHER", "HungarianMatcher")):
        message = sentence(train_net, *data_opts, *out, f"MODEL.ONENET.{key}.NAME", "Best")
        assert f"MODEL.ONENET.{key}.NAME is 'Best'" in message and registry in message
    message = sentence(train_net, *data_opts, *out, "MODEL.ONENET.MATCHER.COST", "AnchorCost")
    assert "'FCOSHead'" in message and "'PointCost'" in message
    for key, value in (("IOU_THRESH", "0.0"), ("IOU_THRESH", "5.0"), ("NMS_THRESH", "-1.0")):
        message = sentence(train_net, *data_opts, *out, f"TEST.END_TO_END.{key}", value)
        assert f"TEST.END_TO_END.{key} is {value}" in message
    limit = "[['end_to_end', 'NMS_gap', 'max', 1.0]]"
    switched_off = ["TEST.END_TO_END.ENABLED", "False", "TEST.LIMITS", limit]
    assert "END_TO_END.ENABLED" in sentence(train_net, *data_opts, *out, *switched_off)

    path, folder = coco_set
    content = json.loads(path.read_text())
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**content, "categories": []}))
    opts = ["DATASETS.TRAIN_JSON", str(broken), "DATASETS.TRAIN_IMAGE_ROOT", str(folder)]
    message = sentence(train_net, *opts, *out)
    assert "broken.json" in message and "categories" in message

    message = sentence(train_net, *data_opts, *out, "MODEL.ONENET.NUM_CLASSES", "80")
    assert "is 80" in message and "2 classes" in message

    message = sentence(train_net, "DATASETS.TRAIN_JSON", "gone.json", *data_opts[2:], *out)
    assert "gone.json" in message

    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for workers in ("0", "1"):
        message = sentence(train_net, *data_opts, *TINY, *out, "DATALOADER.NUM_WORKERS", workers)
        assert "3.png cannot be read" in message
        assert "Traceback" not in capsys.readouterr().out
        log = (tmp_path / "out" / "log.txt").read_text()
        assert "3.png cannot be read" in log and "Traceback" not in log


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_an_output_dir_that_cannot_be_made(train_net, data_opts, tmp_path: Path, name) -> None:
    (tmp_path / "file").touch()
    words = ("--config-file", CONFIG, *data_opts, *TINY, "OUTPUT_DIR", str(tmp_path / name))
    with pytest.raises(SystemExit, match=f"^error: OUTPUT_DIR: the folder '.*{name}' cannot be"):
        train_net(*words)


def test_missing_dataset_names_file_and_variable(train_net, tmp_path: Path, monkeypatch) -> None:
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("lost_set", {}, "lost/set.json", "lost")
    message = sentence(
        train_net, "DATASETS.TRAIN", "('lost_set',)", "DATASETS.TEST", "()",
        "MODEL.ONENET.NUM_CLASSES", "2", "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    assert "lost/set.json is missing" in message and "DETECTRON2_DATASETS" in message


def test_limits_end_the_program(train_net, data_opts, tmp_path: Path) -> None:
    """Both after a training, whose model is saved, and after --eval-only."""
    out = ["OUTPUT_DIR", str(tmp_path / "out")]
    common = ["--config-file", CONFIG, *TINY, *out, "TEST.LIMITS"]
    keeps = ["bbox", "AP", "max", 100]
    breaks = ["end_to_end", "duplicates@0.1", "min", 1000]

    with pytest.raises(SystemExit) as caught:
        train_net(*common, repr([breaks, keeps]), *data_opts, "SOLVER.MAX_ITER", "1")
    message = str(caught.value.code)
    name = f"{data_opts[5]} ({data_opts[7]})"
    start = f"error: TEST.LIMITS: end_to_end/duplicates@0.1 on '{name}' is "
    assert message.startswith(start)
    assert re.fullmatch(r"\d+\.\d{4}; the minimum allowed is 1000\.", message[len(start) :])
    model = str(tmp_path / "out" / "model_final.pth")
    common.insert(0, "--eval-only")
    evaluate = [*data_opts[4:], "MODEL.WEIGHTS", model]
    train_net(*common, repr([keeps]), *evaluate)
    with pytest.raises(SystemExit) as caught:
        train_net(*common, repr([breaks, keeps, [*breaks[:3], 2000]]), *evaluate)
    lines = str(caught.value.code).splitlines()
    assert len(lines) == 2 and lines[1].endswith("is 2000.")
    for entry in (["end_to_end", "AQ", "max", 1], ["mask", "AP", "max", 1]):
        with pytest.raises(SystemExit) as caught:
            train_net(*common, repr([entry]), *evaluate)
        assert f"TEST.LIMITS names '{entry[0]}/{entry[1]}'" in str(caught.value.code)


@pytest.mark.parametrize(
    "entry",
    [
        ["end_to_end", "NMS_gap", "below", 1.0],
        ["end_to_end", "NMS_gap", "max"],
        ["end_to_end", "NMS_gap", "max", "one"],
        ["end_to_end", "NMS_gap", "max", True],
        ["end_to_end", 5, "max", 1.0],
        "end_to_end",
    ],
)
def test_malformed_limits_are_told_at_once(train_net, data_opts, tmp_path, entry) -> None:
    message = sentence(
        train_net, *data_opts, "OUTPUT_DIR", str(tmp_path / "out"), "TEST.LIMITS", repr([entry])
    )
    assert f"TEST.LIMITS has the entry {entry!r}" in message
    assert not (tmp_path / "out").exists()


def test_limits_need_something_to_measure(train_net, data_opts) -> None:
    limit = "[['bbox', 'AP', 'min', 1]]"
    assert "DATASETS.TEST is empty" in sentence(train_net, *data_opts[:4], "TEST.LIMITS", limit)


def test_check_limits_minds_nan_and_each_dataset() -> None:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.DATASETS.TEST = ("one",)
    cfg.TEST.LIMITS = [["bbox", "AP", "min", 30], ["bbox", "AP", "max", 40]]
    for value in (30.0, 35.0, 40.0):
        check_limits(cfg, {"bbox": {"AP": value}})
    with pytest.raises(LimitError, match="on 'one' is 29.9000; the minimum allowed is 30"):
        check_limits(cfg, {"bbox": {"AP": 29.9}})
    with pytest.raises(LimitError, match="is 40.1000; the maximum allowed is 40"):
        check_limits(cfg, {"bbox": {"AP": 40.1}})
    with pytest.raises(LimitError) as caught:
        check_limits(cfg, {"bbox": {"AP": float("nan")}})
    assert len(str(caught.value).splitlines()) == 2  # neither holds
    cfg.DATASETS.TEST = ("one", "two")
    check_limits(cfg, {"one": {"bbox": {"AP": 35.0}}, "two": {"bbox": {"AP": 35.0}}})
    with pytest.raises(LimitError, match="on 'two' is 41"):
        check_limits(cfg, {"one": {"bbox": {"AP": 35.0}}, "two": {"bbox": {"AP": 41.0}}})


def test_a_detector_with_nms_is_evaluated_without_it_too(data_opts, tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "digits" / "baseline_fcos_R18_FPN.yaml")
    opts = [*data_opts[4:], *TINY, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", ""]
    cfg = load_config(config, opts, eval_only=True)
    model = Trainer.build_model(cfg)
    results = Trainer.test(cfg, model)
    tasks = {"bbox", "end_to_end", "bbox_nms_off", "end_to_end_nms_off"}
    assert set(results) == tasks
    assert model.test_nms_thresh == cfg.MODEL.FCOS.NMS_THRESH_TEST
    for folder in ("inference", "inference/nms_off"):
        for name in ("end_to_end.json", "coco_instances_results.json"):
            assert (tmp_path / "out" / folder / name).is_file()

    # Several datasets: below their names
    name = cfg.DATASETS.TEST[0]
    json_file = Path(data_opts[5])
    twin = register_coco_json(str(shutil.copy(json_file, tmp_path / "twin.json")), data_opts[7])
    cfg.defrost()
    cfg.DATASETS.TEST = (name, twin)
    results = Trainer.test(cfg, model)
    assert {key: set(value) for key, value in results.items()} == {name: tasks, twin: tasks}
    written = (tmp_path / "out" / "inference").rglob("*/end_to_end.json")
    assert len([path for path in written if path.parent.name != "nms_off"]) == 4

    # Switched off: neither the evaluator nor the second pass
    cfg.DATASETS.TEST = (name,)
    cfg.TEST.END_TO_END.ENABLED = False
    assert set(Trainer.test(cfg, model)) == {"bbox"}


def run(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_workers_train_evaluate_and_report_errors(data_opts, tmp_path: Path) -> None:
    common = [
        "train_net.py", "--config-file", CONFIG, "--num-gpus", "2", "--dist-url", "auto",
        *data_opts, *TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "out"),
        "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    env = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(*common, **env)
    assert done.returncode == 0, done.stderr
    assert "copypaste" in done.stdout
    report = json.loads((tmp_path / "out" / "inference" / "end_to_end.json").read_text())
    assert report["num_images"] == report["num_objects"] == 4
    again = [*common, "OUTPUT_DIR", str(tmp_path / "again")]
    broken = run(*again, "TEST.LIMITS", "[['bbox', 'AP', 'min', 101]]", **env)
    assert broken.returncode == 1 and "Traceback" not in broken.stderr
    assert "error: TEST.LIMITS: bbox/AP" in broken.stderr
    failed = run(*common, "MODEL.ONENET.HEAD.NAME", "Best", **env)
    assert failed.returncode == 1
    assert "error: MODEL.ONENET.HEAD.NAME is 'Best'" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture(scope="module")
def few_coco_images(real_data: Path, tmp_path_factory) -> Path:
    """A DETECTRON2_DATASETS with the first images of COCO, however many the real one has."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / "coco" / split).symlink_to(real_data / "coco" / split)
        name = f"coco/annotations/instances_{split}.json"
        content = json.loads((real_data / name).read_text())
        content["images"] = content["images"][:4]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "coco").glob("*.yaml")), ids=lambda p: p.stem
)
def test_real_coco_images(path: Path, few_coco_images: Path, tmp_path: Path) -> None:
    done = run(
        "train_net.py", "--config-file", str(path), "OUTPUT_DIR", str(tmp_path),
        "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
        "INPUT.MAX_SIZE_TRAIN", "160", "INPUT.MAX_SIZE_TEST", "160",
        DETECTRON2_DATASETS=str(few_coco_images),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "copypaste: AP,AP50" in done.stdout


@pytest.mark.slow
def test_bccd_trains(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "BCCD").is_dir():
        pytest.skip(f"no BCCD under {real_data}")
    done = run(
        "train_net.py", "--config-file", "configs/bccd/onenet_fcos_R18_FPN.yaml",
        "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2",
        DETECTRON2_DATASETS=str(real_data),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "copypaste: AP,AP50" in done.stdout
    assert re.search(r"\| Platelets +\| [0-9.]+ ", done.stdout)  # the table of AP by class


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_lazy_config_trains(coco_set, tmp_path: Path, num_workers: int) -> None:
    """Alone, or in the workers of torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] * (num_workers == 2)
    path, folder = coco_set
    register = tmp_path / "sitecustomize.py"
    register.write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances('tiny', {{}}, {str(path)!r}, {str(folder)!r})\n"
    )
    done = run(
        *torchrun,
        "tools/lazyconfig_train_net.py", "--config-file", "configs/lazy/onenet_fcos_R50_FPN.py",
        "train.max_iter=1", "train.init_checkpoint=''", f"train.output_dir={tmp_path / 'out'}",
        "model.head.num_classes=2", "dataloader.train.dataset.names=tiny",
        "dataloader.test.dataset.names=tiny", f"dataloader.train.total_batch_size={num_workers}",
        "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert (tmp_path / "out" / "elastic_job").is_file() == (num_workers == 2)


def test_detectron2s_own_trainer(data_opts, tmp_path: Path) -> None:
    """It trains OneNet; the clipping of the full model it does not know, and says so."""
    opts = [*data_opts[:4], *TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="not a valid GradientClipType"):
        DefaultTrainer(load_config(CONFIG, opts))
    trainer = DefaultTrainer(
        load_config(CONFIG, [*opts, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"])
    )
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()
