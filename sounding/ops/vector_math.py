"""A workaround before PyTorch's elementwise functions run in several threads."""

import functools

import torch


@functools.cache
def settle_vector_math() -> None:
    """Call each elementwise function once on one number; does nothing the second time.

    MKL picks the kernel of a function at its first call; when several threads make that call at
    once, one of them can silently run a kernel of 1e-4 accuracy (pytorch issue 188792).
    """
    for dtype in (torch.float32, torch.float64):
        for function in (torch.cos, torch.sin, torch.sqrt, torch.exp, torch.log, torch.tanh):
            function(torch.ones(1, dtype=dtype))
