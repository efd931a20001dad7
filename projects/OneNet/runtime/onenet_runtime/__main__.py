"""``python -m onenet_runtime`` is ``onenet-detect``."""

import sys

from .cli import main

sys.exit(main())
