"""The pool under a simulated clock: what must come out where arithmetic says so."""

import math

import pytest

from benchmarks import mixed_map
from benchmarks._simulation import Costs, makespan, throughput

FREE = Costs()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_what_costs_nothing_is_as_fast_as_its_clients(size):
    reached = throughput(size, FREE, 0.5, rounds=10, under_way=2 * size)
    assert reached == pytest.approx(size / 0.5, rel=0.01)


def test_no_more_is_answered_than_one_supervisor_can():
    costs = Costs(supervisor_s=0.001, processors=8)
    reached = throughput(100, costs, 0.01, rounds=20, under_way=200)
    assert reached == pytest.approx(1000, rel=0.02)


def test_nor_than_all_processors_can():
    costs = Costs(supervisor_s=0.001, worker_s=0.003, processors=2)
    reached = throughput(100, costs, 0.01, rounds=20, under_way=200)
    assert reached == pytest.approx(500, rel=0.02)


def test_one_at_a_time_takes_what_its_parts_take():
    costs = Costs(supervisor_s=0.002, worker_s=0.003, hop_s=0.001)
    reached = throughput(1, costs, 0.01, rounds=200, under_way=1)
    assert 1 / reached == pytest.approx(0.002 + 0.003 + 2 * 0.001 + 0.01, rel=0.001)


def test_a_worker_that_has_to_start_is_waited_for():
    costs = Costs(start_s=3.0)
    assert makespan(1, costs, [1.0], under_way=1) == pytest.approx(4.0)


def test_short_prompts_do_not_wait_behind_long_ones():
    items = mixed_map.prompts(2_000, long_ms=1_000)
    seconds = [int(item.split()[0]) / 1000 for item in items]
    ideal_s = mixed_map.greedy_s(seconds, 8)
    assert makespan(8, FREE, seconds, under_way=64) <= 1.1 * ideal_s


def test_the_greedy_schedule_is_that_of_arithmetic():
    assert mixed_map.greedy_s([3, 1, 1, 1, 2], 2) == 5
    assert math.isclose(mixed_map.greedy_s([0.1] * 10, 10), 0.1)
