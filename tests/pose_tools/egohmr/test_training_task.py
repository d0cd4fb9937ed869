"""The stages' task: gradients go to their own side, batches are flat and back, terms come in when they should."""

import numpy as np
import pytest
import torch

from pose_tools.egohmr.training_task import StageTask, TrainedStage1, TrainedStage2, flat, nested
from tests.pose_tools.egohmr.small import invented_batch, small_stage1, small_stage2

KEEP = ("img", "gender", "fx", "cam_cx", "cam_cy", "box_center", "box_size", "orig_keypoints_2d", "keypoints_3d", "keypoints_3d_full")


class People:
    def __init__(self, count=3):
        self.batch = invented_batch(count)

    def __len__(self):
        return len(self.batch["img"])

    def item(self, index, epoch=0):
        found = {name: self.batch[name][index].numpy() for name in (*KEEP, "scene_pcd_verts_full")}
        return found | {"imgname": "a", "smpl_params": {name: value[index].numpy() for name, value in self.batch["smpl_params"].items()}}


REAL = {"body_pose": np.zeros((4, 69), np.float32), "betas": np.zeros((4, 10), np.float32)}


def test_flat_and_nested_are_inverse():
    item = People().item(0)
    back = nested(flat(item))
    assert set(back) == set(item) - {"imgname"} and set(back["smpl_params"]) == set(item["smpl_params"])


@pytest.mark.parametrize("stage", [1, 2])
def test_terms_gradients_and_metrics(stage):
    torch.manual_seed(0)
    task = StageTask(People(), People(), stage, real=REAL if stage == 1 else None)
    model = TrainedStage1(small_stage1()) if stage == 1 else TrainedStage2(small_stage2(), collision_from=3, transl_noise=0.05)
    batch = task.collate([task.sample(index, 0) for index in range(3)])
    terms = task.losses(model.train(), batch)
    assert set(terms) == set(task.weights) == set(task.counts(batch)) and all(torch.isfinite(value) for value in terms.values())
    if stage == 1:
        terms["adversarial"].backward(retain_graph=True)
        assert all(p.grad is None for p in model.stage.discriminator.parameters())
        model.zero_grad()
        terms["discriminator"].backward()
        assert all(p.grad is None for name, p in model.stage.named_parameters() if not name.startswith("discriminator"))
    else:
        assert terms["penetration"] == 0
        late = task.collate([task.sample(index, 3) for index in range(3)])
        assert task.losses(model, late)["penetration"] > 0
    found = task.evaluate(model.eval())
    assert found["accuracy"] == -found["mpjpe" if stage == 1 else "mpjpe_visible"] and found["mean_pose_mpjpe"] >= 0


def test_an_unknown_weight_is_named():
    with pytest.raises(ValueError, match="no term is called nothing"):
        StageTask(People(), People(), 2, weights={"nothing": 1.0})
