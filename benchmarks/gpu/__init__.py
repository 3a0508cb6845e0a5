"""Tools for work on the GPU kernels: they look at kernels or tune them, and write no results.

`cuda_resources` and `triton_resources` read compiled machine code and need no GPU. `profiling` runs
one pass under a profiler, `small_set` runs what compute-sanitizer watches, `triton_tune` chooses
block shapes. csrc/cuda/README.md holds what the CUDA kernels' instruction counts predict.
"""
