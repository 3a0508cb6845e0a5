"""The network and its parts. Importing this registers the presets with timm."""

from cfmrfn.models.cfmrfn import CFMRFN, Description
from cfmrfn.models.ir50 import IRBackbone
from cfmrfn.models.mobilefacenet import MobileFaceNet
from cfmrfn.models.presets import cfmrfn_base, cfmrfn_equations, cfmrfn_tiny

__all__ = [
    "CFMRFN",
    "Description",
    "IRBackbone",
    "MobileFaceNet",
    "cfmrfn_base",
    "cfmrfn_equations",
    "cfmrfn_tiny",
]
