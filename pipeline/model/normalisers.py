"""What sums of losses are divided by, alike for one worker and for many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def per_worker(*counts: int | Tensor, device: torch.device) -> Tensor:
    """Mean over the workers of each count, as if all of them had one large batch.

    DDP averages gradients over workers. A sum over one worker's boxes divided by this mean comes out, after
    averaging, as the sum over all boxes divided by all counts, also where workers sampled unequally; mmdet
    divides by each worker's own count, which weighs a box by how few others its worker had.

    All workers must call this equally often: it is a collective operation where a process group exists.

    Args:
        counts: what this worker counted.
        device: where the result lies.

    Returns:
        float32, one value a count; a count that is 0 everywhere gives 1 over all workers together.
    """
    total = torch.stack([torch.as_tensor(c, dtype=torch.float32, device=device) for c in counts])
    if not (dist.is_available() and dist.is_initialized()):
        return total.clamp(min=1)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
