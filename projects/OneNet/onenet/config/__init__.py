"""The config keys that OneNet adds to Detectron2's, and reading of config files."""

from .defaults import add_onenet_config
from .load import OWN_DATA, check_keys, read_config

__all__ = ["OWN_DATA", "add_onenet_config", "check_keys", "read_config"]
