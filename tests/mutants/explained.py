"""Mutants that no test can tell from the module, and why, by module and name."""

_RATIOS = "a factor of all weights, which are scaled afterwards"

EXPLAINED = {
    "cfmrfn/losses.py": {
        "class_weights: 1 -> 2": _RATIOS,
        "class_weights: 1 - EFFECTIVE_BETA -> 1 + EFFECTIVE_BETA": _RATIOS,
        "class_weights: 1 -> 2 #2": _RATIOS,
    },
    "cfmrfn/optim.py": {
        "learning_rate_factor: 1e-09 -> 2e-09": "it is there so that nothing is divided by zero",
    },
    "cfmrfn/step.py": {
        "TrainingStep._backward: torch.zeros(2, dtype=sum_dtype(self.world.device),"
        " device=self.world.device) -> torch.zeros(2, dtype=sum_dtype(self.world.device))": (
            "the device is the CPU where there is no GPU"
        ),
    },
    "cfmrfn/metrics.py": {
        "Report.f1: 1 -> 2 #2": "where the sum is 1, no image is right, and F1 is 0 or nan anyway",
        "Calibration.of: np.searchsorted(inner, confidence, side='left')"
        " -> np.searchsorted(inner, confidence)": "NumPy's default, which is better said",
    },
}
