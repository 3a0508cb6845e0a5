"""Measurements of the operator, its peers and the network. Run from the repository's root.

`attention`, `cpu`, `overhead`, `training` and `latency` measure and write JSON files; `compare`
sets two of them side by side; `plots` and `report` make the page in `results/` from them;
`supported` makes `docs/pytorch.md` from the tests. `gpu/` holds tools for work on the GPU kernels.
"""
