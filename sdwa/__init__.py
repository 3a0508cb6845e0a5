"""Sliding dilated window attention: one dilation per head, exact zero padding, fused kernels.

Start with `sliding_dilated_window_attention` (a function on heads-last tensors) or
`SlidingDilatedWindowAttention` (a layer on channels-last maps). `python -m sdwa.info` tells which
backends run on this machine.
"""

from sdwa._version import __version__
from sdwa.dispatch import BackendError, available_backends
from sdwa.functional import attention_weights, sliding_dilated_window_attention
from sdwa.modules import SlidingDilatedWindowAttention, head_dilations

__all__ = [
    "BackendError",
    "SlidingDilatedWindowAttention",
    "__version__",
    "attention_weights",
    "available_backends",
    "head_dilations",
    "sliding_dilated_window_attention",
]
