"""Joint orders against the recorded tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_tools import joints

TABLE = json.loads((Path(__file__).parents[1] / "fixtures/mano/c_joint_orders.json").read_text())


def test_every_recorded_order_is_here():
    assert set(TABLE["conventions"]) | {"ait"} == set(joints.ORDERS) and TABLE["canonical"] == joints.CANONICAL
    assert TABLE["canonical_names"] == list(joints.ORDERS["freihand"])


@pytest.mark.parametrize("name", TABLE["conventions"])
def test_maps_are_the_recorded_ones(name):
    table = TABLE["conventions"][name]
    assert list(joints.ORDERS[name]) == table["names"]
    assert joints.indices(name, "freihand") == table["gather_to_canonical"]
    assert joints.indices("freihand", name) == table["gather_from_canonical"]


@pytest.mark.parametrize("source", joints.ORDERS)
@pytest.mark.parametrize("target", joints.ORDERS)
def test_round_trips_in_both_libraries(source, target):
    points = np.random.default_rng(0).normal(size=(2, 5, 21, 3))
    there = joints.convert(points, source, target)
    assert np.array_equal(joints.convert(there, target, source), points) and not np.shares_memory(there, points)
    assert np.array_equal(joints.convert(torch.from_numpy(points), source, target).numpy(), there)


def test_bones():
    assert [list(bone) for bone in joints.BONES] == TABLE["bones_canonical"]


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match="unknown joint order 'coco'.*freihand"):
        joints.convert(np.zeros((21, 2)), "coco", "freihand")
    with pytest.raises(ValueError, match=r"got \(42, 3\)"):
        joints.convert(np.zeros((42, 3)), "interhand26m_right", "freihand")
