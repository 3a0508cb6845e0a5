"""CFMRFN: facial expressions by cross fusion and multi-level receptive fields, on `sdwa`.

Importing this registers the networks with timm: `timm.create_model("cfmrfn_base")`. `Predictor`
finds the faces in pictures and names their expressions.

Every tool of `python -m cfmrfn` is a module or package of its name. What they share is beside them:
`data` and `models`, parts of a run in `training` and `weights`, results in `evaluation`, `analysis`
and `figures`, files for others in `formats`, and what any program needs in `process`. Which of them
may import which stands in pyproject.toml, for import-linter.
"""

from cfmrfn import models
from cfmrfn.figures import matplotlib_backend
from cfmrfn.predictor import Face, Predictor

matplotlib_backend.allow_missing()

__all__ = ["Face", "Predictor", "models"]
