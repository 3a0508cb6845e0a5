"""Triton's operators are defined in Python, the compiled ones in C++: their schemas agree."""

import pytest
import torch

from sdwa.backends.native import MISSING_CPU

pytestmark = pytest.mark.skipif(MISSING_CPU is not None, reason=str(MISSING_CPU))


def described(argument):
    return (
        argument.name,
        str(argument.type),
        argument.N,  # of a list of fixed length
        argument.default_value,
        argument.kwarg_only,
        argument.alias_info,
    )


@pytest.mark.parametrize("suffix", ("", "_kernel"))
@pytest.mark.parametrize("name", ("attention_forward", "attention_backward"))
@pytest.mark.parametrize("part", ("arguments", "returns"))
def test_triton_has_the_schema_of_the_compiled_operator(name, suffix, part):
    compiled = getattr(torch.ops.sdwa, name + suffix).default._schema
    triton = getattr(torch.ops.sdwa, f"triton_{name}{suffix}").default._schema
    expected = [described(argument) for argument in getattr(compiled, part)]
    assert [described(argument) for argument in getattr(triton, part)] == expected
