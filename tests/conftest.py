"""What every test shares: one thread, a fixed seed, and the cases of `networks.py`."""

import pytest
import torch
from hypothesis import settings

from networks import CASES, Case, build

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Every network, one after the other, with its data."""
    return build(request.param)
