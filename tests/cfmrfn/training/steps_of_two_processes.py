"""Program of test_optim.py: optimizer steps of two processes, each on its half of the batches."""

import math
import sys

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from cfmrfn.process.distributed import World
from tests.cfmrfn.training.test_optim import IN_TWO_PROCESSES, SmallNetwork, make_batch, make_step


def steps(world, settings):
    """Three steps; the weights, what each gave, and how often it synchronised the gradients."""
    torch.manual_seed(0)
    network = SmallNetwork(norm=False).double()
    model = DistributedDataParallel(network)
    synchronised = []

    def counting(state, bucket):
        synchronised.append(bucket.index())
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, counting)
    step = make_step(network, model, world, **settings)
    results = []
    for number in range(3):
        images, labels = (whole.chunk(2)[world.rank] for whole in make_batch(seed=number))
        before = len(synchronised)
        results.append((*step(images, labels, number), len(synchronised) - before))
    return network.state_dict(), results


def loss_scales(world):
    """The loss scale after a step in which the second process overflows, and after another."""
    network = SmallNetwork(norm=False)
    settings = {"rho": 0.3, "sam_local": True, "precision": "fp16"}
    step = make_step(network, DistributedDataParallel(network), world, **settings)
    step.load_scaler_state({**step.scaler.state_dict(), "scale": 8.0})
    images, labels = make_batch()
    scales = []
    overflow = network.head.weight.register_hook(lambda g: g * math.inf if world.rank == 1 else g)
    for number in range(2):
        result = step(images.float(), labels, number)
        scales.append((step.scaler.get_scale(), result.applied))
        overflow.remove()
    return scales


world = World("cpu")
made = {name: steps(world, settings) for name, settings in IN_TWO_PROCESSES.items()}
made["loss scales"] = loss_scales(world)
torch.save(made, f"{sys.argv[1]}.{world.rank}")
world.close()
