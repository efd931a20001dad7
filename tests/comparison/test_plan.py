"""Plans from yaml and from the command line, and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onenet import ConfigError, load_config
from onenet.comparison import find_plan

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/digits/onenet_fcos_R18_FPN.yaml"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def write(folder: Path, **changes: object) -> str:
    content = {
        "title": "A & B",
        "output": "out",
        "seeds": [1, 2],
        "overrides": ["SOLVER.MAX_ITER", 8],
        "runs": [{"name": "A", "config": CONFIG, "overrides": ["X", True]}, {"config": CONFIG}],
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return str(path)


def test_plan_is_read(tmp_path: Path) -> None:
    plan = find_plan([write(tmp_path)])
    assert (plan.title, plan.output, plan.seeds) == ("A & B", Path("out"), (1, 2))
    first, second = plan.entries
    assert first.name == "A" and second.name == "onenet_fcos_R18_FPN"
    # A run's own overrides come last: they win
    assert first.overrides == ("SOLVER.MAX_ITER", "8", "X", "True")
    assert second.overrides == ("SOLVER.MAX_ITER", "8")

    changed = plan.changed(output="there", seeds=[5], overrides=["SOLVER.MAX_ITER", "2"])
    assert (changed.output, changed.seeds) == (Path("there"), (5,))
    assert changed.entries[1].overrides[-2:] == ("SOLVER.MAX_ITER", "2")


def test_only_output_and_runs_are_needed(tmp_path: Path) -> None:
    plan = find_plan([write(tmp_path, title=None, seeds=None, overrides=None)])
    assert plan.seeds == (1,) and plan.title


def test_plans_of_the_checkout_are_right() -> None:
    paths = sorted((ROOT / "configs" / "compare").glob("*.yaml"))
    assert paths
    for path in paths:
        for entry in find_plan([str(path)]).entries:
            load_config(entry.config, list(entry.overrides))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": None}, ["no 'runs'"]),
        ({"output": None}, ["no 'output'"]),
        ({"sedes": [1]}, ["'sedes'", "seeds"]),
        ({"seeds": []}, ["'seeds'", "[]"]),
        ({"seeds": [1, 1]}, ["'seeds'", "different"]),
        ({"seeds": [True]}, ["'seeds'"]),
        ({"seeds": 3}, ["'seeds'", "3"]),
        ({"overrides": ["SOLVER.MAX_ITER"]}, ["'overrides'", "pairs"]),
        ({"overrides": [["a"], "b"]}, ["'overrides'", "['a'] in the place of a key", "pairs"]),
        ({"overrides": ["SEED", 1]}, ["SEED", "remove"]),
        ({"runs": {"config": CONFIG}}, ["'runs'", "list"]),
        ({"runs": ["a.yaml"]}, ["run number 1", "str"]),
        ({"runs": [{"config": "no.yaml"}]}, ["run number 1", "no.yaml"]),
        ({"runs": [{"folder": "tests"}]}, ["run number 1", "tests", "config.yaml"]),
        ({"runs": [{"name": "A"}]}, ["neither"]),
        ({"runs": [{"config": CONFIG, "folder": "tests"}]}, ["both"]),
        ({"runs": [{"config": CONFIG, "color": 1}]}, ["run number 1", "'color'"]),
        ({"runs": [{"config": CONFIG, "name": ["A"]}]}, ["'name'", "list"]),
        ({"runs": [{"config": CONFIG}, {"config": CONFIG}]}, ["two runs", "'name'"]),
        (
            {"runs": [{"config": CONFIG, "name": "a b"}, {"config": CONFIG, "name": "A-b"}]},
            ["two runs"],
        ),
    ],
)
def test_errors_name_file_key_and_cure(tmp_path: Path, changes: dict, words: list[str]) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        find_plan([path])
    for word in [path, *words]:
        assert word in str(caught.value)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no .*no.yaml"):
        find_plan([str(tmp_path / "no.yaml")])
    broken = tmp_path / "broken.yaml"
    for text in ("runs: [", "runs: !!python/object/apply:os.getcwd []"):
        broken.write_text(text)
        with pytest.raises(ConfigError, match="no plain yaml"):
            find_plan([str(broken)])
    broken.write_text("- a")
    with pytest.raises(ConfigError, match="list"):
        find_plan([str(broken)])


def test_paths(make_run) -> None:
    folder = make_run("before")
    plan = find_plan([CONFIG, folder], output="out", overrides=["SOLVER.MAX_ITER", "2"])
    config, finished = plan.entries
    assert config.config == CONFIG and config.overrides == ("SOLVER.MAX_ITER", "2")
    assert finished.folder == folder and finished.name == "before" and not finished.overrides
    with pytest.raises(ConfigError, match="none is trained"):
        find_plan([folder], output="out", overrides=["SOLVER.MAX_ITER", "2"])
    with pytest.raises(ConfigError, match="two runs"):
        find_plan([CONFIG, CONFIG], output="out")


def test_what_paths_mean(tmp_path: Path, make_run) -> None:
    path, photos = write(tmp_path), tmp_path / "photos"
    photos.mkdir()
    assert find_plan([path], output="x", seeds=[4]) == find_plan([path]).changed(
        output="x", seeds=[4]
    )
    folder = make_run("before")
    for paths in ([CONFIG], [folder], [CONFIG, folder]):
        plan = find_plan(paths)
        assert [entry.config or entry.folder for entry in plan.entries] == paths
        assert plan.output == Path("output/compare") and plan.seeds == (1,)
    plan = find_plan([str(photos)], overrides=["SOLVER.MAX_ITER", "2"])
    assert plan.output == Path("output/compare/photos") and plan.seeds == (1,)
    configs = [Path(entry.config) for entry in plan.entries]
    assert [c.name for c in configs] == ["recommended.yaml", "baseline_fcos.yaml"]
    opts = ("DATASETS.FOLDER", str(photos), "SOLVER.MAX_ITER", "2")
    assert all(c.is_file() for c in configs) and {e.overrides for e in plan.entries} == {opts}


def test_paths_that_mean_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no 'gone'"):
        find_plan([str(tmp_path), "gone"])
    path = tmp_path / "plan.yaml"
    path.write_text("output: x\nrunz: []\n")
    with pytest.raises(ConfigError, match="unknown key 'runz'"):
        find_plan([str(path)])
