"""Weights that a network starts from: public files of them, and the choice that a run makes."""
