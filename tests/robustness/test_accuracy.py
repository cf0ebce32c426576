import math

import pytest
import torch
from scipy.stats import binomtest

from isopath.robustness import Accuracy


@pytest.mark.parametrize(("right", "rows"), [(0, 30), (30, 30), (7, 30), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_interval_is_that_of_clopper_and_pearson(right, rows, confidence):
    exact = binomtest(right, rows).proportion_ci(confidence, method="exact")
    assert Accuracy(right, rows, confidence).interval == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_it_is_read_from_a_mask_and_prints_itself():
    score = Accuracy.of(torch.tensor([True, False, True, True]), 0.95)
    assert (score.right, score.rows, score.value) == (3, 4, 0.75)
    assert repr(score) == "Accuracy(75.0%, 3 of 4, 95%: 19.4% to 99.4%)"


def test_of_no_rows_nothing_is_known():
    assert math.isnan(Accuracy(0, 0).value) and Accuracy(0, 0).interval == (0.0, 1.0)
