"""regraft: transfer learning with evidence.

``fit`` does the whole job; ``load`` gives a run's model; the pieces are public as well. Nothing
heavy is imported before one of these names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import RegraftError
from .types import Estimate, Prediction, Source, Verdict

if TYPE_CHECKING:
    from .api import Predictor, Run, check, fit, load
    from .comparison import compare
    from .data import load_data
    from .evaluation import estimates, gain
    from .exporting import export
    from .grafting import graft
    from .linear_probe import fit_probe
    from .loop import fine_tune
    from .sources import load_source

__version__ = "0.1.0"

WHERE = {
    "check": "api",
    "fit": "api",
    "load": "api",
    "Run": "api",
    "Predictor": "api",
    "compare": "comparison",
    "load_source": "sources",
    "load_data": "data",
    "graft": "grafting",
    "fit_probe": "linear_probe",
    "fine_tune": "loop",
    "estimates": "evaluation",
    "gain": "evaluation",
    "export": "exporting",
}


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}")
    return getattr(import_module(f".{WHERE[name]}", __name__), name)


__all__ = [
    "Estimate", "Prediction", "Predictor", "RegraftError", "Run", "Source", "Verdict", "check", "compare",
    "estimates", "export", "fine_tune", "fit", "fit_probe", "gain", "graft", "load", "load_data", "load_source",
]  # fmt: skip
