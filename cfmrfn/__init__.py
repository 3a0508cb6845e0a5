"""CFMRFN: facial expressions by cross fusion and multi-level receptive fields, on `sdwa`.

Importing this registers the networks with timm: `timm.create_model("cfmrfn_base")`. `Predictor`
finds the faces in pictures and names their expressions.
"""

from cfmrfn import models
from cfmrfn.figures import matplotlib_backend
from cfmrfn.predictor import Face, Predictor

matplotlib_backend.allow_missing()

__all__ = ["Face", "Predictor", "models"]
