import os

import peak_memory
import pytest

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="the kernel says no peaks"
)


def test_row_has_the_peaks_of_training_and_of_what_follows(tiny_backbone):
    settings = peak_memory.Settings(images=60, batch_size=4)
    row = peak_memory.run_measured(settings, "Tiny", 16)
    assert row["ratio"] == row["after_mib"] / row["training_mib"] and row["after_mib"] > 64
    mib = (f"{row[name]:.0f}" for name in ("training_mib", "after_mib"))
    line = f"| Tiny@16 | {' | '.join(mib)} | {row['ratio']:.2f} |"
    assert peak_memory.table([row]).splitlines()[2] == line


def test_peak_is_of_what_came_since_it_was_forgotten():
    large = b"x" * (64 << 20)
    before = peak_memory.peak_mib()
    del large
    peak_memory.forget_peak()
    assert peak_memory.peak_mib() < before - 32
