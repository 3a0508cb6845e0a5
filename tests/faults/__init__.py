"""Tries to break the tools and the operator: `python -m tests.faults`, half an hour at most."""
