"""What the summaries call a backbone's range is what black and white pixels become."""

import numpy as np
import pytest

from tl_research.models.preprocessing import RANGES, Preprocessing


@pytest.mark.parametrize("mode", RANGES)
def test_range_is_that_of_black_and_white(mode):
    outputs = Preprocessing(mode)(
        np.array([0.0, 255.0], np.float32).reshape(2, 1, 1, 1) * np.ones((2, 1, 1, 3), np.float32)
    ).numpy()
    np.testing.assert_allclose([outputs.min(), outputs.max()], RANGES[mode], atol=1e-3)
