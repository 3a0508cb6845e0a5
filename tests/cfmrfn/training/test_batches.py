"""Order of the images: a function of (seed, epoch, position), shared out without overlap."""

from collections import Counter
from types import SimpleNamespace

import pytest

from cfmrfn.batches import EpochBatches
from cfmrfn.errors import ConfigError

LABELS = [0] * 20 + [1] * 6 + [2] * 4


def process(rank=0, size=1):
    return SimpleNamespace(rank=rank, size=size)


def batches(world=None, **options):
    settings = {"batch_size": 8, "seed": 0, "balanced": False} | options
    return EpochBatches(LABELS, world=world or process(), **settings)


def test_each_image_once_and_another_order_each_epoch():
    plan = batches()
    first = list(plan)
    assert len(plan) == len(first) == 3
    seen = [index for batch in first for index, _ in batch]
    assert len(set(seen)) == 24
    plan.start(1)
    assert list(plan) != first
    plan.start(0)
    assert list(plan) == first
    assert list(batches(seed=1)) != first


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_an_epoch_goes_on_from_any_step(step):
    whole = batches()
    whole.start(4)
    rest = batches()
    rest.start(4, step)
    assert list(rest) == list(whole)[step:]
    assert len(rest) == 3 - step


def test_processes_share_each_batch():
    whole = list(batches())
    shares = [list(batches(process(rank, 4))) for rank in range(4)]
    assert [[key for share in shares for key in share[step]] for step in range(3)] == whole


def test_balanced_batches_repeat_rare_classes():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    plan = EpochBatches(labels, 100, 0, True, process())
    keys = [key for batch in plan for key in batch]
    counts = Counter(labels[index] for index, _ in keys)
    assert len(keys) == 1000
    # a third each; the standard deviation is 15
    assert all(abs(count - 1000 / 3) < 75 for count in counts.values())
    assert len(set(keys)) == 1000, "repeated images must differ in their augmentation"


def test_batch_larger_than_the_data():
    with pytest.raises(ConfigError, match="batch-size must be at most the number of .* 30; got 31"):
        batches(batch_size=31)
