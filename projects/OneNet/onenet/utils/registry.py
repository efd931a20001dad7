"""Look-up by name: in Detectron2's registries, and of a meta-architecture's own config node."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from .errors import ConfigError

__all__ = ["check_num_classes", "get_registered", "num_classes_node"]


def get_registered(registry: Registry, name: str, key: str) -> Any:
    """Returns what is registered under a name.

    Args:
        registry: where to look.
        name: the value that the config gives.
        key: the config key that gave it, for the error.

    Raises:
        ConfigError: nothing of that name is registered; says what is.
    """
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ConfigError(f"{key} is '{name}', which is not registered; choose one of: {known}.")
    return registry.get(name)


def num_classes_node(cfg: CfgNode) -> str | None:
    """The node of MODEL that holds the meta-architecture's NUM_CLASSES; None for foreign ones."""
    return {"OneNet": "ONENET", "FCOSBaseline": "FCOS", "RetinaNet": "RETINANET"}.get(
        cfg.MODEL.META_ARCHITECTURE
    )


def check_num_classes(cfg: CfgNode) -> None:
    """Raises where a model is to be built before its number of classes is known.

    Raises:
        ConfigError: says where to set it.
    """
    node = num_classes_node(cfg)
    if node is not None and cfg.MODEL[node].NUM_CLASSES < 1:
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {cfg.MODEL[node].NUM_CLASSES}; set it, or load the config"
            " with onenet.engine.load_config, which takes it from the dataset."
        )
