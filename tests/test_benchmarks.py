"""The benchmark runs and its numbers are numbers; how large they are is not tested."""

import csv
import importlib.util
import math
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "fake_quantization.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("fake_quantization", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_ratios_are_finite_and_positive_and_are_written(benchmark, tmp_path):
    rows = list(benchmark.measure(benchmark.SHAPES["tiny"], rounds=1))
    assert {(row.what, row.variant) for row in rows} == {
        (what, variant)
        for what in benchmark.WHAT.values()
        for variant in benchmark.VARIANTS
        if variant != benchmark.BASELINE
    }
    for row in rows:
        numbers = (row.ratio_min, row.ratio, row.ratio_max, row.seconds, row.seconds_baseline)
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert row.ratio_min <= row.ratio <= row.ratio_max
    benchmark.write(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert float(written[0]["ratio"]) == pytest.approx(rows[0].ratio, rel=1e-3)
