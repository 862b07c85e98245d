"""How much arithmetic a training step is, and how much a device can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

FORWARD_AND_BACKWARD = 3  # the backward pass is twice the forward pass
# torch's counter knows the attention kernels of GPUs only
ATTENTION_ON_CPU: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    )
}


def training_flops(module: nn.Module, batch: dict[str, Tensor]) -> float:
    """Count the floating-point operations of a training step on a batch.

    Parameters
    ----------
    module
        The network; a copy of it is run once, on the CPU.
    batch
        A masked batch; a few cells will do.

    Returns
    -------
    Three times those of the forward pass. What is computed again to save memory does not count.
    """
    copied = deepcopy(module).cpu().train().requires_grad_(False)
    on_cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in batch.items()}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as count:
        copied(on_cpu)
    return FORWARD_AND_BACKWARD * float(count.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second that a device can do at best.

    Parameters
    ----------
    device, dtype
        What multiplies, and in what precision.

    Returns
    -------
    For a GPU that Lightning knows, what its maker says; otherwise that of a large matrix product,
    measured.
    """
    if device.type == "cuda" and (known := get_available_flops(device, dtype)):
        return float(known)
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(_time(lambda: a @ a, device) for _ in range(3))
    return 2 * size**3 / seconds


def _time(run: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def activation_bytes(run: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, on any device.

    Parameters
    ----------
    run
        Computes a loss.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    del loss
    return sum(kept.values())
