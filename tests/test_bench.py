"""The benchmarks run and print what they promise; how fast is asserted nowhere."""

from __future__ import annotations

import re

from scripts import bench
from scripts.benchmarks.timing import interleave, peak_growth, report


def test_benchmarks_are_listed(capsys):
    assert bench.main([]) == 0
    assert "synthetic" in capsys.readouterr().out
    assert bench.main(["nothing"]) == 2
    assert "no benchmark is called 'nothing'" in capsys.readouterr().err


def test_ways_are_interleaved():
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return {"fast": 4.0, "slow": 2.0}[name]

    figures = interleave({"fast": lambda: way("fast"), "slow": lambda: way("slow")}, 3)
    assert order == ["fast", "slow"] * 3 and figures == {"fast": [4.0] * 3, "slow": [2.0] * 3}
    assert re.search(r"fast .* 2\.00$", report(figures, "per second"), re.MULTILINE)


def test_a_peak_is_seen_again_and_nothing_to_compare_with_is_no_crash():
    """Many small arrays, which the allocator keeps when they are freed: the second run's peak is that of the first."""
    peaks = [peak_growth(lambda: [bytearray(50_000) for _ in range(1000)]) for _ in range(3)]
    assert max(peaks) == 0 or min(peaks) > 30  # 0: no /proc
    assert report({"none": [0.0]}, "MB").splitlines()[1].endswith("nan")


def test_synthetic(capsys):
    assert bench.main(["synthetic", "--count", "3", "--rounds", "1", "--size", "48", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"CPU time: [0-9.]+ ms a {unit}", printed) for unit in ("picture", "clip"))


def test_mining(capsys):
    assert bench.main(["mining", "--count", "600", "--videos", "6", "--chunks", "1"]) == 0
    assert re.search(r"[0-9.]+ s  peak +[0-9.]+ GB  1 chunks mined, 600 hands with a neighbour", capsys.readouterr().out)
