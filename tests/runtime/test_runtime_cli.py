"""The command line ``onenet-detect``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from onenet_runtime import Detector, cli, detector
from onenet_runtime.predictor import Predictor
from onenet_runtime.sources import IMAGE_SUFFIXES, Source, output_names
from onenet_runtime.video import VideoReader
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@pytest.fixture
def folder(tmp_path: Path, make_image) -> Path:
    """Images 1.png, 2.jpg and 10.png of different sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in {"1.png": (40, 60), "2.jpg": (90, 30), "10.png": (64, 64)}.items():
        cv2.imwrite(str(folder / name), make_image(*size, seed=size[0]))
    return folder


@pytest.fixture
def video(tmp_path: Path, make_image) -> Path:
    """Seven frames of 64 x 48 pixels."""
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for seed in range(7):
        writer.write(make_image(48, 64, seed))
    writer.release()
    return path


@pytest.fixture
def run(make_model, capsys) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of a command line behind the model."""
    model = str(make_model(thresholds=[0.6, 0.1]))

    def command(*words: str | Path) -> tuple[int, str, str]:
        code = cli.main([model, *map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return command


def usage_error(run, *words: str | Path) -> str:
    code, out, err = run(*words)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_folder_with_bad_images(run, folder: Path, tmp_path: Path) -> None:
    (folder / "3.jpg").write_text("no image")
    (folder / "4.jpg").write_bytes((folder / "2.jpg").read_bytes()[:-90])
    cv2.imwrite(str(folder / "5.png"), np.zeros((1, 999, 3), np.uint8))
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "drawn"
    code, stdout, stderr = run(folder, "--output", out, "--batch", "2")
    assert code == 1
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "10.png", "2.jpg"]
    # The calibrated thresholds leave the two dogs.
    assert f"{folder / '1.png'}: 2 detections (2 dog)" in stdout
    assert "3 images, 6 detections; " in stdout and " images a second" in stdout
    lines = stderr.splitlines()
    assert lines[0] == "3 inputs failed:" and len(lines) == 4
    assert "3.jpg is not an image" in stderr and "4.jpg is damaged or cut off" in stderr
    assert "5.png, of 999 x 1 pixels, is too narrow" in stderr


def test_drawing(run, folder: Path, tmp_path: Path, make_model) -> None:
    before = (folder / "1.png").read_bytes()
    assert run(folder / "1.png", "--output", tmp_path / "drawn", "--threshold", "0.4")[0] == 0
    expected = Detector(make_model(), threshold=0.4)(folder / "1.png").draw()
    with Image.open(tmp_path / "drawn" / "1.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), expected)
    assert (folder / "1.png").read_bytes() == before


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES & set(Image.registered_extensions())))
def test_drawing_in_each_format(suffix: str, run, tmp_path: Path, make_image) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(make_image()).save(path)
    code, _, err = run(path, "--output", tmp_path / "drawn")
    assert code == 0 and err == ""
    with Image.open(tmp_path / "drawn" / path.name) as drawn, Image.open(path) as image:
        assert drawn.format == image.format and drawn.size == (576, 384)


def test_threshold(run, folder: Path) -> None:
    assert "1.png: 2 detections (2 dog)" in run(folder / "1.png", "--threshold", "auto")[1]
    assert "1 detection (1 dog)" in run(folder / "1.png", "--threshold", "0.8")[1]
    assert "1.png: 0 detections\n" in run(folder / "1.png", "--threshold", "0.95")[1]


def test_json(run, folder: Path, tmp_path: Path, rows) -> None:
    path = tmp_path / "new" / "results.json"
    assert run(folder, "--json", path, "--batch", "3", "--threshold", "0.95")[0] == 0
    results = json.loads(path.read_text())
    # All detections whatever the threshold; names that are numbers are the ids.
    assert [r["image_id"] for r in results] == [1] * 3 + [10] * 3 + [2] * 3
    assert [r["category_id"] for r in results[:3]] == [18, 17, 18]
    np.testing.assert_allclose([r["score"] for r in results[:3]], rows.scores[:3])
    x0, y0, x1, y1 = rows.boxes[0] * [60, 40, 60, 40]
    np.testing.assert_allclose(results[0]["bbox"], [x0, y0, x1 - x0, y1 - y0], rtol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def _annotations(path: Path, images: list[dict[str, object]]) -> Path:
    boxes = [[6.0, 8.0, 24.0, 28.0], [30.0, 20.0, 30.0, 20.0], [0.0, 0.0, 15.0, 12.0]]
    content = {
        "images": images,
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 77,
                "category_id": 17 if i == 1 else 18,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, box in enumerate(boxes)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_json_is_scored_by_pycocotools(run, folder: Path, tmp_path: Path) -> None:
    annotations = _annotations(
        tmp_path / "set.json",
        [{"id": 77, "file_name": "images/1.png", "height": 40, "width": 60}],
    )
    path = tmp_path / "results.json"
    words = (folder / "1.png", "--json", path, "--annotations", annotations)
    assert run(*words)[0] == 0
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_images_that_the_annotations_lack(run, folder: Path, tmp_path: Path) -> None:
    images = [{"id": 77, "file_name": "1.png"}, {"id": 78, "file_name": "elsewhere/2.jpg"}]
    annotations = _annotations(tmp_path / "set.json", images)
    path = tmp_path / "results.json"
    code, stdout, stderr = run(folder, "--json", path, "--annotations", annotations)
    assert code == 1 and "1 image, " in stdout
    assert {r["image_id"] for r in json.loads(path.read_text())} == {77}
    assert stderr.startswith("2 inputs failed:")
    assert "2.jpg is not among the images of" in stderr and "10.png is not among" in stderr


def test_bad_annotations(run, folder: Path, tmp_path: Path) -> None:
    words = (folder, "--json", tmp_path / "results.json", "--annotations")
    assert "cannot be read" in usage_error(run, *words, tmp_path / "nothing.json")
    (tmp_path / "list.json").write_text("[]")
    assert "not in COCO's format" in usage_error(run, *words, tmp_path / "list.json")
    assert "give --json too" in usage_error(run, folder, "--annotations", tmp_path / "list.json")
    assert not (tmp_path / "results.json").exists()
    for categories in (None, 5, [{"id": 17}], [{"id": float("inf"), "name": "cat"}]):
        content = {"images": [], "categories": categories}
        (tmp_path / "set.json").write_text(json.dumps(content))
        assert "not in COCO's format" in usage_error(run, *words, tmp_path / "set.json")


@pytest.fixture
def run_without_ids(make_model, capsys) -> Callable[..., tuple[int, str, str]]:
    """As ``run``, with a model that was exported without its data set at hand."""
    model = str(make_model(category_ids=None))

    def command(*words: str | Path) -> tuple[int, str, str]:
        return cli.main([model, *map(str, words)]), *capsys.readouterr()

    return command


def _categories(path: Path, **ids: int) -> Path:
    """Annotations of the image 1.png with these categories."""
    categories = [{"id": i, "name": name.rstrip("_")} for name, i in ids.items()]
    images = [{"id": 77, "file_name": "1.png"}]
    path.write_text(json.dumps({"images": images, "categories": categories}))
    return path


def test_category_ids_of_annotations(run_without_ids, folder: Path, tmp_path: Path) -> None:
    annotations = _categories(tmp_path / "set.json", dog=5, bird=1, cat=9)
    path = tmp_path / "results.json"
    words = (folder / "1.png", "--json", path, "--annotations", annotations)
    assert run_without_ids(*words)[0] == 0
    results = json.loads(path.read_text())
    assert [r["category_id"] for r in results] == [5, 9, 5]
    assert {r["image_id"] for r in results} == {77}


def test_category_ids_that_nothing_tells(run_without_ids, folder: Path, tmp_path: Path) -> None:
    words = (folder / "1.png", "--json", tmp_path / "results.json")
    assert "with --annotations, or export it again" in usage_error(run_without_ids, *words)
    assert run_without_ids(folder / "1.png")[0] == 0
    annotations = _categories(tmp_path / "set.json", dog=5)
    error = usage_error(run_without_ids, *words, "--annotations", annotations)
    assert "class 'cat' is not among the categories of" in error
    _categories(annotations, cat=1, dog=5, dog_=6)
    error = usage_error(run_without_ids, *words, "--annotations", annotations)
    assert "'dog' is the name of 1 of the model's classes and 2 of the categories" in error
    assert not (tmp_path / "results.json").exists()


def test_equal_class_names(make_model, folder: Path, tmp_path: Path, capsys) -> None:
    model = make_model(category_ids=None, class_names=["cat", "cat"])
    annotations = _categories(tmp_path / "set.json", cat=1)
    words = [model, folder, "--json", tmp_path / "results.json", "--annotations", annotations]
    assert cli.main(list(map(str, words))) == 2
    assert "'cat' is the name of 2 of the model's classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ({"cat": 17, "dog": 18}, [18, 17, 18]),
        ({"cat": 1, "dog": 2, "bird": 3}, [2, 1, 2]),  # those of the annotations, by name
        ({"cat": 18, "dog": 17}, [17, 18, 17]),
        ({"cat": 17, "bird": 18, "dog": 2}, [2, 17, 2]),
        ({"cat": 5, "bird": 6}, [18, 5, 18]),  # 18 is nobody else's
        ({"dog": 18, "dog_": 4, "cat": 1}, [18, 1, 18]),  # the id tells which dog
        ({}, [18, 17, 18]),
    ],
)
def test_category_ids_of_model_and_annotations(
    run, folder: Path, tmp_path: Path, categories: dict[str, int], expected: list[int]
) -> None:
    path = tmp_path / "results.json"
    annotations = _categories(tmp_path / "set.json", **categories)
    assert run(folder / "1.png", "--json", path, "--annotations", annotations)[0] == 0
    assert [r["category_id"] for r in json.loads(path.read_text())] == expected


def test_category_ids_that_contradict(run, run_without_ids, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    annotations = _categories(tmp_path / "set.json", cat=17, bird=18)
    words = (folder / "1.png", "--json", path, "--annotations", annotations)
    error = usage_error(run, *words)
    assert "The model's class 'dog' is not among the categories of" in error
    assert "its id 18 is that of 'bird' there" in error
    _categories(annotations, **{f"kind{i}": i for i in range(12)})
    for command in (run, run_without_ids):
        error = usage_error(command, *words)
        assert "None of the model's classes ('cat', 'dog') is among the categories of" in error
        assert "('kind0', 'kind1'" in error and "'kind9' and 2 more)" in error
    _categories(annotations)
    assert "(none)" in usage_error(run_without_ids, *words)
    assert not path.exists()


def test_annotations_with_a_byte_order_mark(run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    annotations = _categories(tmp_path / "set.json", cat=17, dog=18)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert run(folder / "1.png", "--json", path, "--annotations", annotations)[0] == 0
    assert {r["image_id"] for r in json.loads(path.read_text())} == {77}


def test_results_do_not_depend_on_the_batch(make_model, tmp_path: Path, make_image, capsys) -> None:
    # The model's scores are the batch's height and width, divided by 1000
    model, path = make_model("shape"), tmp_path / "results.json"
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(64, 64), (40, 60), (64, 64), (90, 30)]):
        cv2.imwrite(str(folder / f"{i}.png"), make_image(*size))
    results = []
    for batch in (1, 3, 4):
        assert cli.main([str(model), str(folder), "--json", str(path), "--batch", str(batch)]) == 0
        results.append(json.loads(path.read_text()))
    assert results[0] == results[1] == results[2] and len(results[0]) == 8


def test_ids_of_names(run, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    path = tmp_path / "results.json"

    def ids(*words: Path) -> list[int | str]:
        assert run(*words, "--json", path)[0] == 0
        return list(dict.fromkeys(r["image_id"] for r in json.loads(path.read_text())))

    (other / "0001.png").write_bytes((folder / "1.png").read_bytes())
    assert ids(other) == [1]
    assert ids(folder / "1.png", other) == ["1.png", "0001.png"]  # both would be 1
    (other / "0001.png").rename(other / "1.png")
    assert ids(folder / "1.png", other) == [str(folder / "1.png"), str(other / "1.png")]
    (other / "1.png").rename(other / "street.png")
    assert ids(folder / "1.png", other) == ["1.png", "street.png"]


def test_pattern_and_repeated_inputs(run, folder: Path) -> None:
    code, stdout, _ = run(folder / "1*.png", folder / "10.png", folder)
    assert code == 0
    names = [Path(line.split(": ")[0]).name for line in stdout.splitlines()[:-1]]
    assert names == ["1.png", "10.png", "2.jpg"]
    assert "10.png: " in run(folder.parent / "**" / "10.*")[1]


def test_usage_errors(run, folder: Path, tmp_path: Path) -> None:
    assert "No file matches the pattern" in usage_error(run, folder / "*.gif")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no images" in usage_error(run, empty)
    assert "would be overwritten" in usage_error(run, folder, "--output", folder)
    assert "would be overwritten" in usage_error(run, folder, "--json", folder / "2.jpg")
    assert "is a folder" in usage_error(run, folder, "--json", folder)
    assert "cannot be made" in usage_error(run, folder, "--output", folder / "1.png")
    assert "not available" in usage_error(run, folder, "--device", "TurboExecutionProvider")
    assert len(list(folder.iterdir())) == 3


def test_pattern_of_folders(run, folder: Path) -> None:
    (folder / "2.folder").mkdir()
    assert "No file matches the pattern" in usage_error(run, folder.parent / "image*")
    assert "No file matches the pattern" in usage_error(run, folder / "1.png", folder / "*.folder")
    code, stdout, stderr = run(folder / "2.*")
    assert code == 0 and stderr == "" and "1 image, " in stdout


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that root cannot fill")
def test_folders_that_cannot_be_written(run, folder: Path, tmp_path: Path) -> None:
    for words in (("--output", "/proc/self"), ("--json", "/proc/self/p.json")):
        assert "No file can be written in the folder /proc/self (" in usage_error(
            run, folder, *words
        )
    out = tmp_path / "drawn"
    assert run(folder / "1.png", "--output", out, "--json", tmp_path / "json" / "p.json")[0] == 0
    assert [path.name for path in out.iterdir()] == ["1.png"]
    assert [path.name for path in (tmp_path / "json").iterdir()] == ["p.json"]


def test_json_that_is_a_folder(run, folder: Path, tmp_path: Path, capsys) -> None:
    drawn = tmp_path / "drawn"
    assert "is a folder" in usage_error(run, folder, "--output", drawn, "--json", drawn)
    with pytest.raises(SystemExit) as caught:
        run(folder, "--json", f"{tmp_path}/new/")
    assert caught.value.code == 2 and "is not the name of a file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words", [("--threshold", "2"), ("--threshold", "high"), ("--batch", "0"), ("--batch", "x")]
)
def test_bad_values(words, run, folder: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run(folder, *words)
    assert caught.value.code == 2
    assert f"{words[1]!r} is not a" in capsys.readouterr().err


def test_model_errors(make_model, folder: Path, capsys) -> None:
    assert cli.main([str(folder / "1.png"), str(folder)]) == 2
    assert "is not an ONNX file" in capsys.readouterr().err
    assert cli.main([str(make_model()), str(folder), "--threshold", "auto"]) == 2
    assert "has no calibrated thresholds" in capsys.readouterr().err


def test_missing_files(run, folder: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run(tmp_path / "a.jpg", tmp_path / "b.mp4", folder / "1.png")
    assert code == 1 and "1 image, 2 detections" in stdout
    assert "a.jpg does not exist" in stderr and "b.mp4 does not exist" in stderr


def test_exit_codes_are_as_told(run, tmp_path: Path, runtime_folder: Path, capsys) -> None:
    assert run(tmp_path / "nosuch.jpg")[0] == 1
    assert run("webcam:99")[0] == 1
    with pytest.raises(SystemExit):
        run("--help")
    for text in (capsys.readouterr().out, (runtime_folder / "README.md").read_text()):
        words = " ".join(text.split())
        assert "some or all inputs failed" in words and "nothing was done" not in words
        assert "the command line or the model is wrong" in words and "141" in words


def test_webcam_that_is_not_there(run, folder: Path) -> None:
    code, stdout, stderr = run("webcam:99", folder / "1.png")
    assert code == 1 and "1 image, 2 detections" in stdout
    assert "webcam99 cannot be opened" in stderr


def test_equal_names_of_two_folders(run, folder: Path, tmp_path: Path, make_image) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "1.png"), make_image(50, 50, 9))
    out = tmp_path / "drawn"
    assert run(folder / "1.png", other / "1.png", "--output", out)[0] == 0
    assert cv2.imread(str(out / "1.png")).shape == (384, 576, 3)
    assert cv2.imread(str(out / "1_2.png")).shape == (384, 384, 3)


def test_output_names() -> None:
    paths = ["a/x.jpg", "x_2.jpg", "b/X.JPG", "b/x.heic", "x.avi", "c/x.mp4"]
    assert output_names([*(Source(Path(p)) for p in paths), Source(0)]) == [
        *("x.jpg", "x_2.jpg", "X_3.JPG", "x.heic.png", "x.mp4", "x_2.mp4", "webcam0.mp4")
    ]


def test_video(run, video: Path, tmp_path: Path, rows) -> None:
    out, path = tmp_path / "drawn", tmp_path / "results.json"
    words = (video, "--output", out, "--json", path, "--batch", "3")
    code, stdout, _ = run(*words)
    assert code == 0
    assert f"{video}: 7 frames, 14 detections\n" in stdout
    frames = frames_of(out / "drive.mp4")
    assert len(frames) == 7 and frames[0].shape == (48, 64, 3)
    results = json.loads(path.read_text())
    assert [r["image_id"] for r in results[::3]] == [f"drive.avi:{i}" for i in range(7)]
    x0, y0, x1, y1 = rows.boxes[1] * [64, 48, 64, 48]
    np.testing.assert_allclose(results[-2]["bbox"], [x0, y0, x1 - x0, y1 - y0], rtol=1e-5)


def test_bad_video(run, video: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    code, stdout, stderr = run(bad, video)
    assert code == 1 and "7 frames" in stdout and "bad.mp4 cannot be opened" in stderr


def test_a_frame_that_is_too_narrow(run, video: Path, tmp_path: Path, monkeypatch) -> None:
    """Those before it in its batch, and the next input, are detected on."""

    def frames(self):
        yield from [np.zeros((48, 64, 3), np.uint8)] * 5
        yield np.zeros((2, 2000, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "__iter__", frames)
        copy = video.with_name("copy.avi")
        copy.write_bytes(video.read_bytes())
        code, stdout, stderr = run(video, copy, "--batch", "4")
    assert code == 1 and f"{video}: 5 frames" in stdout and f"{copy}: 5 frames" in stdout
    assert "drive.avi, of 2000 x 2 pixels, is too narrow" in stderr


def test_interrupted_video_is_finalised(make_model, video: Path, tmp_path: Path, capsys) -> None:
    class Interrupted(Predictor):
        calls = 0

        def __call__(self, images):
            self.calls += 1
            if self.calls == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(images)

    out, path = tmp_path / "drawn", tmp_path / "results.json"
    words = [str(make_model()), str(video), "--output", str(out), "--json", str(path)]
    # A shell has what it starts in the background ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detector, "Predictor", Interrupted)
            assert cli.main(words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert "interrupted" in captured.err and f"{video}: 4 frames" in captured.out
    assert len(frames_of(out / "drive.mp4")) == 4
    assert len({r["image_id"] for r in json.loads(path.read_text())}) == 4


def test_json_is_whole_or_absent(run, folder: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out" / "results.json"
    path.parent.mkdir()
    path.write_text("[1]")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    code, stdout, stderr = run(folder, "--json", path)
    assert code == 1 and "3 images" in stdout
    assert "results.json cannot be written (No space left on device)" in stderr
    assert path.read_text() == "[1]" and len(list(path.parent.iterdir())) == 1


def test_show_with_and_without_windows(run, folder: Path, monkeypatch) -> None:
    shown, keys = [], iter([ord("a"), ord("q")])
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    code, stdout, _ = run(folder, "--show")
    assert code == 0 and shown == [(384, 576, 3), (384, 384, 3)]  # q at the second of three

    def headless(*args):
        raise cv2.error("The function is not implemented.")

    monkeypatch.setattr(cv2, "namedWindow", headless)
    assert "replace opencv-python-headless" in usage_error(run, folder, "--show")


def test_without_opencv(run, folder: Path, video: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cli, "cv2", None)
    code, stdout, stderr = run(folder, "--output", tmp_path / "drawn")
    assert code == 0 and stderr == "" and "3 images, " in stdout
    assert run(video)[0] == 0
    for words in (("webcam:0",), (folder, "--show")):
        assert "pip install opencv-python" in usage_error(run, *words)


def test_without_pyav(run, folder: Path, video: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cli, "av", None)
    assert run(folder)[0] == 0
    for words in ((folder, video), ("webcam:0", "--output", tmp_path)):
        assert "pip install av" in usage_error(run, *words)


def test_as_a_module(make_model, folder: Path, runtime_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "onenet_runtime", str(make_model()), str(folder), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(runtime_folder)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stderr == "" and "3 images" in result.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("kind", "kept"), [("images", 3), ("drive.avi", 21)])
def test_broken_pipe(
    kind: str, kept: int, unbuffered: str, make_model, folder: Path, video: Path, runtime_folder
) -> None:
    path = folder.parent / "results.json"
    words = [str(make_model()), str(folder.parent / kind), "--json", str(path)]
    reader, writer = os.pipe()
    os.close(reader)  # the first line that is printed finds nobody
    result = subprocess.run(
        [sys.executable, "-m", "onenet_runtime", *words, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(runtime_folder), "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert result.returncode == 141 and result.stderr == ""
    assert len(json.loads(path.read_text())) == kept


def test_broken_pipe_of_stderr(make_model, folder: Path, runtime_folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [str(make_model()), str(folder / "nosuch.jpg"), str(folder / "1.png")]
    result = subprocess.run(
        [sys.executable, "-m", "onenet_runtime", *words, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(runtime_folder)},
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    assert result.returncode == 141 and "1 image, " in result.stdout


def test_json_is_written_whatever_ends_the_run(
    make_model, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def fail(*args):
        raise MemoryError

    path = tmp_path / "results.json"
    monkeypatch.setattr(detector, "draw_boxes", fail)
    with pytest.raises(MemoryError):
        words = [make_model(), folder, "--json", path, "--output", tmp_path / "drawn"]
        cli.main(list(map(str, words)))
    assert len(json.loads(path.read_text())) == 3
