"""Look-up by name in registries and config nodes, with errors that list the choices."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from .errors import ConfigError

__all__ = ["check_num_classes", "get_registered", "num_classes_node"]


def get_registered(registry: Registry, name: str, key: str) -> Any:
    """Returns the object registered under a name.

    Args:
        registry: to search.
        name: from the config.
        key: the config key of the name, for the error.

    Raises:
        ConfigError: the name is not registered; lists the registered ones.
    """
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ConfigError(f"{key} is '{name}', which is not registered; choose one of: {known}.")
    return registry.get(name)


def num_classes_node(cfg: CfgNode) -> str | None:
    """Name of the node of MODEL that has NUM_CLASSES; None for unknown meta-architectures."""
    return {"OneNet": "ONENET", "FCOSBaseline": "FCOS", "RetinaNet": "RETINANET"}.get(
        cfg.MODEL.META_ARCHITECTURE
    )


def check_num_classes(cfg: CfgNode) -> None:
    """Checks that the number of classes is known before a model is built.

    Raises:
        ConfigError: it is not; names the key to set.
    """
    node = num_classes_node(cfg)
    if node is not None and cfg.MODEL[node].NUM_CLASSES < 1:
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {cfg.MODEL[node].NUM_CLASSES}; set it, or load the config"
            " with onenet.engine.load_config, which takes it from the dataset."
        )
