"""Several GPUs that train one model: each takes its part of every batch, gradients are averaged.

    torchrun --nproc-per-node 4 demos/training/train_classifier.py ...

What is learnt depends on the batch alone, not on how many GPUs share it, up to random numbers.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Team", "join"]


@dataclass(frozen=True)
class Team:
    """The place of this process among those that train together.

    Args:
        rank: Its number; 0 writes and measures.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and measures."""
        return self.rank == 0

    def part(self, items: Tensor) -> Tensor:
        """This process's share of a batch's indices."""
        return items[self.rank :: self.size]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the team, all in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        pieces = (flat / self.size).split([g.numel() for g in gradients])
        pairs = zip(gradients, pieces, strict=True)
        torch._foreach_copy_(gradients, [piece.view_as(g) for g, piece in pairs])

    def agree(self, wish: bool, device: torch.device) -> bool:
        """Whether everybody wishes so: clocks differ, and nobody may wait for one who stopped."""
        if self.size == 1:
            return wish
        votes = torch.tensor(int(wish), device=device)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)


def join() -> Team:
    """The team that torchrun started, or a team of one; takes the GPU of the process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    return Team(dist.get_rank(), size)
