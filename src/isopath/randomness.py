"""Random numbers of our own: the caller's are where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Global random state from a seed, on the CPU and on a device, for what modules draw; the caller's is put back."""
    state = torch.Generator().manual_seed(seed).get_state()
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            yield
        return
    with torch.random.fork_rng([device], device_type=device.type):
        torch.set_rng_state(state)
        on_device = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(on_device, device)
        yield
