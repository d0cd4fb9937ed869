"""Published checkpoints by their names, and everything that must be refused."""

import pytest
import torch

from pose_tools.egohmr import load_stage1, load_stage2, published_state_dict
from pose_tools.simhand.checkpoint import CheckpointError
from tests.pose_tools.egohmr.recordings import bodies, checkpoint, manifest, normal, recorded
from tests.pose_tools.egohmr.small import invented_batch, small_stage1, small_stage2

LICENSED = {"smpl.v_template": torch.zeros(6890, 3), "smpl_male.betas": torch.zeros(1, 10), "smpl.coap.decoder.weight": torch.zeros(2)}


def statistics():
    return torch.zeros(144), torch.ones(144)


def small(stage):
    return published_state_dict(small_stage1() if stage == 1 else small_stage2())


def load(stage, tensors, **given):
    return load_stage1(tensors, bodies(), **given) if stage == 1 else load_stage2(tensors, bodies(), *statistics(), **given)


@pytest.mark.parametrize("stage", [1, 2])
def test_saved_is_reloaded_whatever_its_size(stage, tmp_path):
    torch.save({"state_dict": small(stage) | LICENSED}, tmp_path / "best_model.pt")
    model, batch = load(stage, tmp_path / "best_model.pt"), invented_batch()
    before = small_stage1() if stage == 1 else small_stage2()
    assert not model.training
    with torch.no_grad():
        if stage == 1:
            assert torch.equal(model(batch, 1)["vertices"], before(batch, 1)["vertices"])
        else:
            x, t = normal(1, (2, 24, 6)), torch.tensor([1, 2])
            assert torch.equal(model.denoise(x, t, model.encode(batch)), before.denoise(x, t, before.encode(batch)))
    again = published_state_dict(model)
    assert all(torch.equal(again[name], value) for name, value in small(stage).items()) and not any(
        name.startswith("smpl") for name in again
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_missing_extra_and_misshapen_tensors_are_named(stage):
    tensors = small(stage)
    name = "scene_enc.block_1.fc_0.weight"
    for wrong in (
        {k: v for k, v in tensors.items() if k != name},
        tensors | {name: torch.zeros(3, 3)},
        tensors | {"scene_enc.block_9.fc_0.weight": torch.zeros(1)},
        tensors | {"backbone.fc.weight": torch.zeros(1)},
        {k: v for k, v in tensors.items() if not k.startswith("backbone.")},
        {k: v for k, v in tensors.items() if "init_betas" not in k},
    ):
        with pytest.raises(CheckpointError, match="block_|backbone|encoder|init_betas"):
            load(stage, wrong)


def test_the_other_stage_is_told_apart():
    with pytest.raises(CheckpointError, match="load_stage2"):
        load(1, small(2))
    with pytest.raises(CheckpointError, match="load_stage1"):
        load(2, small(1))


def test_means_may_come_beside_and_halves_are_checked():
    tensors = small(1)
    betas = torch.linspace(0, 1, 10)
    bare = {k: v for k, v in tensors.items() if "init_" not in k}
    model = load(1, bare, shape=betas, init_cam=[0.8, 0.1, 0.2])
    assert torch.equal(model.flow.fc_head.init_betas.flatten(), betas)
    whole_file = {"pose": torch.zeros(144), "shape": betas, "cam": torch.tensor([0.8, 0.1, 0.2])}
    assert torch.equal(load(1, bare, **whole_file).flow.fc_head.init_cam, model.flow.fc_head.init_cam)
    with pytest.raises(TypeError, match="unknown statistics"):
        load(1, bare, mean=betas)
    swapped = tensors | {"flow.flow._transform._transforms.2.identity_features": torch.arange(1, 144, 2)}
    with pytest.raises(CheckpointError, match="even numbers"):
        load(1, swapped)


def test_statistics_must_be_those_of_144_numbers():
    for mean, std in (
        (torch.zeros(6), torch.ones(144)),
        (torch.zeros(144), torch.zeros(144)),
        (torch.full((144,), torch.nan), torch.ones(144)),
    ):
        with pytest.raises(ValueError, match="144|above 0"):
            load_stage2(small(2), bodies(), mean, std)


@pytest.mark.slow
@torch.no_grad()
def test_published_names_load_and_give_the_recorded_features():
    expected, picture = recorded("encoders"), normal(14, (2, 3, 224, 224))
    stage1 = load_stage1(checkpoint(1), bodies())
    feature = stage1.backbone(picture)
    assert (feature - expected["img_feat"]).abs().max() <= 1e-5 * expected["img_feat"].abs().max()
    assert set(manifest(1)) <= set(published_state_dict(stage1))
    flow = recorded("flow")
    sampled = stage1.flow.sample(normal(80, (3, 2566), 0.5), flow["sample_fixed.z"])
    assert (sampled["pose6d"] - flow["sample_fixed.pose6d"]).abs().max() <= 1e-5 * flow["sample_fixed.pose6d"].abs().max()
    del stage1
    stage2 = load_stage2(checkpoint(2), bodies(), *statistics())
    assert set(manifest(2)) <= set(published_state_dict(stage2))
    scene = stage2.scene_enc(expected["points"])
    assert (scene - expected["scene_feat"]).abs().max() <= 1e-5 * expected["scene_feat"].abs().max()
