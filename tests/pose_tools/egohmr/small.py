"""Small networks and an invented batch: what is shared by tests that need no recording."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pose_tools.body_models import load_smpl
from pose_tools.egohmr.body import BODY_25, PosedBody, bodies_by_gender, keypoints_45, true_body
from pose_tools.egohmr.camera import project_normalised
from pose_tools.egohmr.folder import InputSizes, save_stage
from pose_tools.egohmr.stage1 import Stage1, Stage1Config
from pose_tools.egohmr.stage2 import Stage2, Stage2Config
from pose_tools.simhand.encoder import Encoder
from tests.pose_tools.egohmr.recordings import bodies


class Balls:
    """The recordings' stand-in for COAP and VolumetricSMPL: balls of 12 cm around the 24 joints."""

    def distance(self, body: PosedBody, points: Tensor) -> Tensor:
        return torch.cdist(points, body.joints).amin(-1)

    def penetration(self, body: PosedBody, points: Tensor) -> Tensor:
        return (0.12 - self.distance(body, points)).clamp_min(0)

    def inside(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.distance(body, points) < 0.12


def small_backbone() -> Encoder:
    return Encoder(depths=(1, 1), hidden_sizes=(8, 16), embedding_size=8, layer_type="basic")


def small_stage1(**settings) -> Stage1:
    torch.manual_seed(0)
    config = Stage1Config(scene_width=8, scene_hidden=8, flow_hidden=16, flow_repetitions=2, discriminator_hidden=16, **settings)
    return Stage1(bodies(), config, small_backbone()).eval()


def small_stage2(std: float = 0.3) -> Stage2:
    torch.manual_seed(0)
    config = Stage2Config(
        scene_width=8, scene_hidden=8, transl_hidden=8, transl_width=8, latent_width=16, gcn_width=16, gcn_blocks=2, betas_hidden=16
    )
    mean = torch.eye(3)[:, :2].reshape(-1).repeat(24)
    return Stage2(bodies(), mean, torch.full((144,), std), config, small_backbone()).eval()


def small_folder(folder: Path) -> Path:
    """A folder of both stages, random but for the translation: stage 1 puts every body about three metres away. The stand-in's body."""
    torch.manual_seed(0)
    sizes = {"scene_width": 8, "scene_hidden": 8}
    config = Stage1Config(flow_hidden=16, flow_repetitions=2, discriminator_hidden=16, uncertainty=True, **sizes)
    first = Stage1(load_smpl(), config, small_backbone())
    with torch.no_grad():
        first.flow.fc_head.init_cam.copy_(torch.tensor([0.9, 0.0, 0.0]))
        for value in first.flow.fc_head.layers[-1].parameters():
            value.zero_()
    config_2 = Stage2Config(transl_hidden=8, transl_width=8, latent_width=16, gcn_width=16, gcn_blocks=1, betas_hidden=16, **sizes)
    mean = torch.eye(3)[:, :2].reshape(-1).repeat(24)
    mean[:6] = torch.tensor([1.0, 0, 0, -1, 0, 0])  # a body stands upright where the camera's y points down
    second = Stage2(load_smpl(), mean, torch.full((144,), 0.3), config_2, small_backbone())
    for stage in (first.eval(), second.eval()):
        save_stage(folder, stage, InputSizes(48, 300))
    return folder


def invented_batch(count: int = 2, points: int = 300, seed: int = 0) -> dict:
    """A batch of people three metres away, cut off by the picture's lower edge, in clouds of points around them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    params = {"global_orient": 0.3 * draw(count, 3), "body_pose": 0.2 * draw(count, 69), "betas": 0.3 * draw(count, 10)}
    params["transl"] = torch.tensor([0.1, 0.3, 3.0]) + 0.1 * draw(count, 3)
    batch = {"img": draw(count, 3, 64, 64), "smpl_params": params, "gender": torch.arange(count) % 2}
    batch |= {"fx": torch.full((count,), 0.98), "cam_cx": torch.full((count,), 955.0), "cam_cy": torch.full((count,), 545.0)}
    batch |= {"box_center": torch.tensor([[1000.0, 700.0]]).repeat(count, 1), "box_size": torch.full((count,), 640.0)}
    truth = true_body(bodies_by_gender(bodies()), params, batch["gender"])
    flat = project_normalised(keypoints_45(truth)[:, list(BODY_25)], batch)
    seen = (flat.abs() <= 0.5).all(-1, keepdim=True).float()
    batch["orig_keypoints_2d"] = torch.cat([flat, seen * 0.8], -1)
    batch |= {"keypoints_3d": truth.joints, "keypoints_3d_full": truth.joints}
    batch["scene_pcd_verts_full"] = params["transl"][:, None] + 0.6 * draw(count, points, 3)
    return batch
