"""Processes: the batches of a run shared out to the processes that torchrun starts.

Networks run on a part of the batch in each process. What the losses read is then gathered: so a
Dice over the batch, and methods that relate its samples, are exact.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcd_core.types import ContractError, Output


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this one is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def started(cls, batch: int) -> "Processes":
        """Those of torchrun, connected, or this alone; ContractError for parts of unequal size."""
        count = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
        if count == 1:
            return cls()
        if batch % count:
            raise ContractError("batch", batch, f"a multiple of {count} processes", str(count))
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), count)

    def make_alike(self, module: nn.Module) -> None:
        """Give a module the weights and buffers that it has in the first process."""
        for tensor in module.state_dict().values() if self.count > 1 else ():
            dist.broadcast(tensor, 0)

    def part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch (b, ...)."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def whole(self, output: Output) -> Output:
        """The output for a whole batch, from the outputs for its parts."""
        logits, stages, deep = output
        return Output(self._joined(logits), *(tuple(map(self._joined, x)) for x in (stages, deep)))

    def mean(self, gradient: Tensor) -> Tensor:
        """The mean over the processes of a gradient that all of them have."""
        if self.count == 1:
            return gradient
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / self.count

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def _joined(self, part: Tensor) -> Tensor:
        if self.count == 1 or not part.numel():
            return part
        own = part.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own.detach())
        if own.requires_grad:
            # All processes have one loss, but only the gradient of their own part: the sum over the
            # processes is the whole. The mean is taken, as of gradients that each has in full.
            own = own.view_as(own)
            own.register_hook(lambda gradient: gradient * self.count)
        parts[self.rank] = own
        return torch.cat(parts)


ALONE = Processes()


def training_device() -> torch.device:
    """Where networks are trained, measured and scored unless told otherwise: a GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
