"""Measurements of the operator, its peers and the network. Run from the repository's root."""
