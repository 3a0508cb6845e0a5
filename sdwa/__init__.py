"""Sliding dilated window attention: one dilation per head, exact zero padding, fused kernels.

Start with `sliding_dilated_window_attention` (a function on heads-last tensors) or
`SlidingDilatedWindowAttention` (a layer on channels-last maps). `sdwa.natten` has NATTEN's names,
and `sdwa.swap` replaces the attention of existing models. `python -m sdwa.info` tells which
backends run on this machine.
"""

from sdwa import natten
from sdwa._version import __version__
from sdwa.dispatch import BackendError, available_backends
from sdwa.functional import attention_weights, sliding_dilated_window_attention
from sdwa.modules import SlidingDilatedWindowAttention, head_dilations
from sdwa.swapping import Swapped, swap

__all__ = [
    "BackendError",
    "SlidingDilatedWindowAttention",
    "Swapped",
    "__version__",
    "attention_weights",
    "available_backends",
    "head_dilations",
    "natten",
    "sliding_dilated_window_attention",
    "swap",
]
