"""Look-up in Detectron2's registries with an error that names the config key."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import Registry

from .errors import ConfigError

__all__ = ["get_registered"]


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
