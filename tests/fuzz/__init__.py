"""Random problems of the operator against plain loops in float64: `python -m tests.fuzz`."""
