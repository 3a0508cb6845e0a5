"""Program of test_optim.py: optimizer steps of two processes, each on its half of the batches."""

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


world = World("cpu")
made = {name: steps(world, settings) for name, settings in IN_TWO_PROCESSES.items()}
torch.save(made, f"{sys.argv[1]}.{world.rank}")
world.close()
