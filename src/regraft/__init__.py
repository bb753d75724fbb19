"""regraft: transfer learning with evidence.

``fit`` does the whole job; ``load`` gives a run's model; the pieces are public as well. Nothing
heavy is imported before one of these names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import RegraftError

if TYPE_CHECKING:
    from .api import Run, check, choose, fit
    from .compute.versions import __version__ as __version__
    from .data.loading import load_data
    from .evidence.comparison import compare
    from .evidence.linear_probe import fit_probe
    from .evidence.scoring import estimates, gain
    from .evidence.types import Prediction
    from .model.grafting import graft
    from .model.types import Source
    from .pipeline.predictor import Predictor, load
    from .publish.export import export
    from .runs.estimates import Estimate, Verdict
    from .sources import load_source
    from .training.loop import fine_tune

MODULES = {
    "Estimate": "runs.estimates",
    "Prediction": "evidence.types",
    "Predictor": "pipeline.predictor",
    "Run": "api",
    "Source": "model.types",
    "Verdict": "runs.estimates",
    "check": "api",
    "choose": "api",
    "compare": "evidence.comparison",
    "estimates": "evidence.scoring",
    "export": "publish.export",
    "fine_tune": "training.loop",
    "fit": "api",
    "fit_probe": "evidence.linear_probe",
    "gain": "evidence.scoring",
    "graft": "model.grafting",
    "load": "pipeline.predictor",
    "load_data": "data.loading",
    "load_source": "sources",
    "__version__": "compute.versions",
}

__all__ = [
    "Estimate",
    "Prediction",
    "Predictor",
    "RegraftError",
    "Run",
    "Source",
    "Verdict",
    "check",
    "choose",
    "compare",
    "estimates",
    "export",
    "fine_tune",
    "fit",
    "fit_probe",
    "gain",
    "graft",
    "load",
    "load_data",
    "load_source",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first. Raises AttributeError for any other name."""
    if name not in MODULES:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)
