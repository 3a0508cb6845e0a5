"""Tools for work on the GPU kernels: they look at kernels or tune them, and write no results.

`cuda_resources` and `triton_resources` read compiled machine code and need no GPU. The first stands
on `cuda_library` (what is in the library), `warp_path` (which instructions a warp runs),
`warp_clock` (how long, and how often it waits), `cuda_families` (how kernels are launched) and
`cuda_model` (the speed that follows); csrc/cuda/README.md shows what comes of it. `profiling` runs
one pass under a profiler, `small_set` runs what compute-sanitizer watches, `triton_tune` chooses
block shapes.
"""
