"""One rank of a training by two processes, as torchrun starts it: replicated ("DDP") or sharded ("FSDP")."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def main(kind: str) -> None:
    """Three steps; the first rank prints the sum of each parameter."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)
    net = nn.Sequential(*layers).double()
    model: Any = DistributedDataParallel(net) if kind == "DDP" else _sharded(net)
    step = torch.optim.SGD(net.parameters(), 0.1)
    for n in range(3):
        generator = torch.Generator().manual_seed(10 * n + dist.get_rank())
        step.zero_grad()
        model(torch.randn(2, 3, 12, 12, generator=generator).double()).square().mean().backward()
        step.step()
    whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in net.parameters()]
    if dist.get_rank() == 0:
        print(json.dumps({"sums": [float(each.detach().abs().sum()) for each in whole]}))
    dist.destroy_process_group()


def _sharded(net: nn.Sequential) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in (net[0], net[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


if __name__ == "__main__":
    main(sys.argv[1])
