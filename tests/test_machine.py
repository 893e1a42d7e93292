"""What a process may use of the machine."""

import os
import time

import pytest

from tl_research import ahead, machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_are_those_that_the_process_may_run_on():
    allowed = os.sched_getaffinity(0)
    assert machine.cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    "text, most", [("150000 100000\n", 2), ("100000 100000\n", 1), ("1000 100000\n", 1)]
)
def test_cores_are_no_more_than_a_container_gives(monkeypatch, tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "_QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.cores() == most
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == 8


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_work_ahead_comes_in_order_on_any_number_of_cores(monkeypatch, cores):
    monkeypatch.setattr(machine, "cores", lambda: cores)

    def slow_at_first(number):
        time.sleep(0.002 * (number % 5 == 0))
        return number

    assert list(ahead.in_order(slow_at_first, range(30), 7)) == list(range(30))
