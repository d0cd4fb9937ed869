"""Loading every published layout by names, and what comes out of the networks."""

import collections
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pose_tools import joints
from pose_tools.simhand.checkpoint import CheckpointError, read_state_dict
from pose_tools.simhand.encoder import (
    ContrastiveModel,
    Encoder,
    load_25d,
    load_contrastive,
    load_detnet,
    load_encoder,
    published_state_dict,
)
from tests.pose_tools.simhand.networks import detnet, lightning, pixels, plain_resnet, regression, torchvision

PICTURES = pixels(0, 2, 3, 64, 64)


@pytest.fixture(scope="module")
def expected():
    with torch.no_grad():
        return plain_resnet(PICTURES, torchvision())


def layouts():
    state = lightning()
    features = {name.removeprefix("encoder."): value for name, value in state.items() if ".features." in name}
    flat = torchvision(state)
    return {
        "lightning": {"state_dict": state, "epoch": 3, "hyper_parameters": {"a": 1}},
        "released": flat,
        "peclr": {"state_dict": flat},
        "fine-tuned": {"state_dict": {f"backend_model.{name}": value for name, value in flat.items()}},
        "data parallel": {f"module.{name}": value for name, value in flat.items()},
        "features": features,
        "detection net": {name: value for name, value in state.items() if ".features." in name} | {"deconv.0.weight": torch.zeros(1)},
        "without counters": {name: value for name, value in flat.items() if not name.endswith("tracked")},
    }


@pytest.mark.parametrize(
    "name", ["lightning", "released", "peclr", "fine-tuned", "data parallel", "features", "detection net", "without counters"]
)
def test_every_layout_gives_the_same_encoder(name, expected):
    encoder = load_encoder(layouts()[name])
    with torch.no_grad():
        torch.testing.assert_close(encoder.maps(PICTURES), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder(PICTURES), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not encoder.training and all(p.requires_grad for p in encoder.parameters())


def test_files_of_both_kinds_and_back(tmp_path, expected):
    encoder = load_encoder(torchvision())
    save_file(published_state_dict(encoder), tmp_path / "a.safetensors")
    torch.save({"state_dict": published_state_dict(encoder)}, tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        with torch.no_grad():
            torch.testing.assert_close(load_encoder(tmp_path / file).maps(PICTURES), expected, rtol=1e-4, atol=1e-5)
    assert set(published_state_dict(encoder)) == {name for name in torchvision() if not name.startswith("fc.")}


def test_contrastive_heads_and_own_files(tmp_path):
    state, model = lightning(), load_contrastive({"state_dict": lightning()})
    with torch.no_grad():
        embedding, projection = model(PICTURES)
        hidden = embedding @ state["projection_head.0.weight"].T + state["projection_head.0.bias"]
        scale = state["projection_head.1.weight"] / (state["projection_head.1.running_var"] + 1e-5).sqrt()
        hidden = (hidden - state["projection_head.1.running_mean"]) * scale + state["projection_head.1.bias"]
        torch.testing.assert_close(projection, hidden.relu() @ state["projection_head.3.weight"].T, rtol=1e-4, atol=1e-5)
    small = ContrastiveModel(Encoder((1, 1), (32, 64), 8, "basic"), hidden=24, output=10).eval()
    save_file(small.state_dict(), tmp_path / "own.safetensors")
    for mine, theirs in zip(small(PICTURES), load_contrastive(tmp_path / "own.safetensors")(PICTURES), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(small(PICTURES)[0], load_encoder(tmp_path / "own.safetensors")(PICTURES))


def _both(self, **values):
    """Items that are attributes too, as EasyDict has them."""
    dict.__init__(self, **values)
    self.__dict__.update(values)


def test_a_lightning_file_full_of_foreign_classes_is_read_and_runs_nothing(tmp_path):
    """Classes of a module that is not there when the file is read; one of them would act on being created."""
    foreign = types.ModuleType("foreign_package")
    foreign.EasyDict = type("EasyDict", (dict,), {"__module__": "foreign_package", "__init__": _both})
    foreign.Trap = type("Trap", (), {"__module__": "foreign_package", "__reduce__": lambda self: (foreign.spring, ("sprung",))})
    foreign.spring = types.FunctionType((lambda word: word).__code__, {}, "spring")
    foreign.spring.__module__, foreign.spring.__qualname__ = "foreign_package", "spring"
    sys.modules["foreign_package"] = foreign
    try:
        content = {
            "state_dict": {"conv1.weight": torch.ones(2)},
            "hyper_parameters": foreign.EasyDict(lr=1, nested=foreign.EasyDict(a=2)),
            "loops": foreign.Trap(),
            "order": collections.OrderedDict(a=1),
        }
        torch.save(content, tmp_path / "a.ckpt")
    finally:
        del sys.modules["foreign_package"]
    assert list(read_state_dict(tmp_path / "a.ckpt")) == ["conv1.weight"]
    assert "foreign_package" not in sys.modules


def test_numpy_numbers_beside_the_weights_do_no_harm(tmp_path):
    beside = {"best": np.float64(0.5), "step": np.int64(3), "errors": np.arange(3.0), "single": np.float32(1)}
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}, **beside}, tmp_path / "a.ckpt")
    assert list(read_state_dict(tmp_path / "a.ckpt")) == ["conv1.weight"]


def test_2_5d_net():
    state = regression()
    model = load_25d({"state_dict": state})
    pictures = pixels(1, 2, 3, 96, 96)
    with torch.no_grad():
        found = model(pictures)
        features = plain_resnet(pictures, {name.removeprefix("backend_model."): value for name, value in state.items()}).mean((2, 3))
        raw = (features @ state["backend_model.fc.weight"].T + state["backend_model.fc.bias"])[:, :63].view(2, 21, 3)
        batch = model(pictures, torch.tensor([[300.0, 0, 50], [0, 310, 40], [0, 0, 1]]))
    torch.testing.assert_close(found["kp2d"], raw[..., :2], rtol=1e-4, atol=1e-5)
    assert (found["zrel"][:, 0] == 0).all() and torch.equal(found["zrel"][:, 1:, 0], found["kp25d"][:, 1:, 2])
    torch.testing.assert_close(found["zrel"][:, 1:, 0], raw[:, 1:, 2], rtol=1e-4, atol=1e-5)
    projected = batch["kp3d"] @ torch.tensor([[300.0, 0, 50], [0, 310, 40], [0, 0, 1]]).T
    torch.testing.assert_close(projected[..., :2] / projected[..., 2:], batch["kp2d"], rtol=1e-3, atol=1e-3)
    assert len(state) == 336


@pytest.mark.parametrize("own", [False, True])
def test_detection_net(own):
    state = detnet(own)
    assert len(state) == (288 if own else 360)
    model, pictures = load_detnet(state), pixels(2, 2, 3, 128, 128)
    with torch.no_grad():
        found = model(pictures)
        single = model(pictures[1:])
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        "h_map": (21, 32, 32),
        "d_map": (21, 3, 32, 32),
        "l_map": (21, 3, 32, 32),
        "uv": (21, 2),
        "delta": (21, 3),
        "xyz": (21, 3),
    }
    torch.testing.assert_close(found["l_map"][1:], single["l_map"], rtol=1e-4, atol=1e-5)
    for b, j in ((0, 0), (1, 20)):
        row, column = found["uv"][b, j]
        assert found["h_map"][b, j, row, column] == found["h_map"][b, j].max()
        assert torch.equal(found["xyz"][b, j], found["l_map"][b, j, :, row, column])
        assert torch.equal(found["delta"][b, j], found["d_map"][b, j, :, row, column])


def test_wrong_checkpoints_are_refused_with_the_list():
    state = torchvision()
    lost = {name: value for name, value in state.items() if not name.startswith("layer3.2.conv2")}
    with pytest.raises(CheckpointError, match=r"missing \(1\): backbone.encoder.stages.2.layers.2.layer.1.convolution.weight"):
        load_encoder(lost)
    with pytest.raises(CheckpointError, match="unexpected tensors.*decoder.weight"):
        load_encoder(state | {"decoder.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"blocks is none of resnet18"):
        load_encoder({name: value for name, value in state.items() if not name.startswith("layer3.5.")})
    with pytest.raises(CheckpointError, match="of another shape"):
        load_encoder(state | {"layer1.0.conv2.weight": torch.ones(64, 64, 1, 1)})
    with pytest.raises(CheckpointError, match="no projection_head"):
        load_contrastive(state)
    with pytest.raises(CheckpointError, match="missing .*root_refinement.0.weight"):
        load_25d(state | {"fc.weight": torch.ones(64, 2048), "fc.bias": torch.ones(64)})
    with pytest.raises(CheckpointError, match="missing .*hmap_0"):
        load_detnet({name: value for name, value in detnet(True).items() if not name.startswith("hmap_0")})
    with pytest.raises(CheckpointError, match="missing .*block2.3"):
        load_detnet({name: value for name, value in detnet(True).items() if not name.startswith("encoder.block2.3.")})
    with pytest.raises(CheckpointError, match="no tensor of a ResNet"):
        load_encoder({"projection_head.0.weight": torch.ones(2, 2)})


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 cut")
    for name, message in (("absent.pth", "no such file"), ("half.pth", "cannot be read")):
        with pytest.raises(CheckpointError, match=message):
            load_encoder(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a dictionary"):
        load_encoder(tmp_path / "list.pth")


def test_ait_order_is_peclrs():
    to_freihand = [0, 1, 5, 9, 13, 17, 2, 6, 10, 14, 18, 3, 7, 11, 15, 19, 4, 8, 12, 16, 20]
    points = np.arange(21)[:, None].repeat(2, 1)
    assert joints.convert(points, "freihand", "ait")[:, 0].tolist() == to_freihand
