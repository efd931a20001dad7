"""The example files of tools/cluster name what is there, and what the launchers need."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from onenet.engine import argument_parser

FOLDER = "tools/cluster"


def test_the_batch_script(repo_root) -> None:
    path = repo_root / FOLDER / "train.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # a worker a GPU
    assert {"nodes", "time", "requeue"} <= options.keys()
    header, _, body = text.partition("set -euo pipefail")
    assert "#SBATCH" not in body  # SLURM reads none behind the first command


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("restarts", [None, "1"])
def test_the_batch_scripts_command(repo_root, tmp_path, restarts: str | None) -> None:
    """With an srun that prints what it gets."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%q " "$@"\n')
    srun.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | (
        {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    )
    words = ["bash", f"{FOLDER}/train.sbatch", "a b.yaml", "OUTPUT_DIR", "x y"]
    done = subprocess.run(words, cwd=repo_root, env=env, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    words = words[words.index("train_net.py") + 1 :]
    args = argument_parser().parse_args(words)
    assert (args.config_file, args.resume) == ("a b.yaml", restarts is not None)
    assert args.opts == ["OUTPUT_DIR", "x y"] and args.num_gpus is None


def test_the_pytorchjob(repo_root) -> None:
    job = yaml.safe_load((repo_root / FOLDER / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["metadata"]["name"]
    spec, policy = job["spec"], job["spec"]["elasticPolicy"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    assert policy["rdzvBackend"] == "c10d" and policy["rdzvId"] and policy["maxRestarts"] > 0
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch" and container["image"]
    assert spec["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    launcher, script, *words = container["command"]
    assert launcher == "torchrun" and (repo_root / script).is_file()
    args = argument_parser().parse_args(words)
    assert (repo_root / args.config_file).is_file() and args.opts[0] == "OUTPUT_DIR"
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert args.opts[1].startswith(mounted["storage"]) and "/dev/shm" in mounted.values()
