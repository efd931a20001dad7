"""The config keys that OneNet adds to Detectron2's, and how a config is loaded."""

from .load import add_onenet_config, load_config, resolve_num_classes

__all__ = ["add_onenet_config", "load_config", "resolve_num_classes"]
