"""`python -m sdwa.info`: versions, what was compiled, and each backend with why it is off."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import torch

import sdwa
from sdwa.extension import build_info, find, source_folder, stale


def describe() -> str:
    """The report as text."""
    facts = {"sdwa": sdwa.__version__, "Python": platform.python_version()}
    facts["PyTorch"] = torch.__version__
    facts["CPU"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        facts[f"GPU {index}"] = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"
    build = build_info()
    if build is None:
        facts["compiled"] = "nothing: run `pip install .` where the sources are"
    elif isinstance(build, str):
        facts["compiled"] = build
    else:
        facts["compiled with"] = f"{build.compiler}, PyTorch {build.torch_version}"
        facts["CPU kernels"] = build.instruction_sets
        facts["CUDA kernels"] = (
            f"CUDA {build.cuda}: {build.cuda_architectures}"
            if build.cuda_architectures
            else f"none: {build.cuda}"
        )
        facts["libraries"] = str(find("_lib"))
        facts["sources"] = stale() or ("as built" if source_folder() else "none here")
    lines = [f"{name:<14} {fact}" for name, fact in facts.items()]
    lines.append("backends")
    for name, reasons in sdwa.available_backends().items():
        lines.append(f"  {name:<12} {'usable' if not reasons else 'off: ' + '; '.join(reasons)}")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(prog="python -m sdwa.info", description=__doc__).parse_args()
    try:
        print(describe(), flush=True)
    except BrokenPipeError:  # `| head` has read enough
        # Python flushes once more at its end, where the error would be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
