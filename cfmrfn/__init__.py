"""CFMRFN: facial expressions by cross fusion and multi-level receptive fields, on `sdwa`.

Importing this registers the networks with timm: `timm.create_model("cfmrfn_base")`.
"""

from cfmrfn import models

__all__ = ["models"]
