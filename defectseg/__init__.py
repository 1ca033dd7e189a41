"""Find surface defects on steel, pixel by pixel, and paint them red.

In Python: `from defectseg import Predictor`; see docs/api.md.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectseg.inference.predictor import Prediction, Predictor
    from defectseg.inference.stream import Unreadable

from defectseg.machine import __version__

# On import, OpenVINO tells its maker of its use, unless this package is missing. Now Python says that it is.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__all__ = ["Prediction", "Predictor", "Unreadable", "__version__"]

if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is offered here at its first use: the command line starts in a fifth of a second without it."""
        if name in __all__:
            return getattr(import_module("defectseg.inference.predictor"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
