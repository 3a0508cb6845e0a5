"""Mutants that no test can tell from the module, and why, by module and name."""

_RATIOS = "a factor of all weights, which are scaled afterwards"
_SOONER = "the same answer, only later: what is the same object has the same repr"
_ARE_KEPT = (
    "prepare: known[2] is dilation or repr(known[2]) == repr(dilation)",
    "prepare: known[1] is kernel_size or repr(known[1]) == repr(kernel_size)",
    "prepare: is_causal is False or repr(known[3]) == repr(is_causal)",
)

EXPLAINED = {
    "sdwa/dispatch.py": {
        "module: 4096 -> 4097": "some bound is needed, whichever",
        **{f"{kept} -> {kept.partition(' or ')[2]}": _SOONER for kept in _ARE_KEPT},
        "prepare: 2 -> 3": _SOONER,
        "prepare: 1 -> 2 #4": _SOONER,
        "prepare: False -> True": _SOONER,
    },
    "cfmrfn/losses.py": {
        "class_weights: 1 -> 2": _RATIOS,
        "class_weights: 1 - EFFECTIVE_BETA -> 1 + EFFECTIVE_BETA": _RATIOS,
        "class_weights: 1 -> 2 #2": _RATIOS,
    },
    "cfmrfn/optim.py": {
        "learning_rate_factor: 1e-09 -> 2e-09": "it is there so that nothing is divided by zero",
    },
    "cfmrfn/training/step.py": {
        "TrainingStep._backward: torch.zeros(2, dtype=sum_dtype(self.world.device),"
        " device=self.world.device) -> torch.zeros(2, dtype=sum_dtype(self.world.device))": (
            "the device is the CPU where there is no GPU"
        ),
        "TrainingStep._climb: False -> True": "_descend finds the same gradient not finite",
    },
    "cfmrfn/metrics.py": {
        "Report.f1: 1 -> 2 #2": "where the sum is 1, no image is right, and F1 is 0 or nan anyway",
        "Calibration.of: np.searchsorted(inner, confidence, side='left')"
        " -> np.searchsorted(inner, confidence)": "NumPy's default, which is better said",
    },
}
