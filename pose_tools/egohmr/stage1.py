"""Stage 1 (ProHMR-scene): picture, scene and camera → a distribution over poses, one shape, one translation with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pose_tools.body_models import Smpl
from pose_tools.egohmr import camera, losses
from pose_tools.egohmr.body import BODY_25, JOINTS, bodies_by_gender, keypoints_45, pose_body, true_body, true_pose
from pose_tools.egohmr.discriminator import Discriminator
from pose_tools.egohmr.flow import POSE_WIDTH, PoseFlow
from pose_tools.egohmr.scene_encoder import SceneEncoder
from pose_tools.geometry import matrix_to_rotation_6d
from pose_tools.simhand.encoder import Encoder

CAMERA_WIDTH = 6
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Stage1Config:
    """Sizes; the defaults are the published ones."""

    scene_width: int = 512
    scene_hidden: int = 256
    flow_hidden: int = 1024
    flow_repetitions: int = 4
    discriminator_hidden: int = 1024
    uncertainty: bool = False
    """A head for the translation's standard deviation, which the published weights do not have."""


class Stage1(nn.Module):
    """`stage1(batch, num_samples)`; see `forward`. A batch's entries are named as EgoHMR's loader names them (`data/ego_body.py`)."""

    def __init__(self, smpl: Smpl | Mapping[str, Smpl], config: Stage1Config | None = None, backbone: Encoder | None = None):
        super().__init__()
        self.config = c = config or Stage1Config()
        self.backbone = backbone or Encoder()
        self.scene_enc = SceneEncoder(c.scene_width, c.scene_hidden)
        self.context_width = CAMERA_WIDTH + self.backbone.width + c.scene_width
        self.flow = PoseFlow(self.context_width, c.flow_hidden, c.flow_repetitions)
        self.discriminator = Discriminator(hidden=c.discriminator_hidden)
        self.transl_log_std = nn.Linear(self.context_width, 3) if c.uncertainty else None
        self.bodies = nn.ModuleDict(bodies_by_gender(smpl))

    @property
    def smpl(self) -> Smpl:
        """The neutral body, which predictions are made with."""
        return self.bodies["neutral"]

    def encode(self, batch: Batch) -> Tensor:
        """The condition (B, context) of a batch: camera 6, picture, scene; `img` (B, 3, 224, 224), `scene_pcd_verts_full` (B, N, 3)."""
        image = self.backbone(batch["img"])
        return torch.cat([camera.camera_features(batch), image, self.scene_enc(batch["scene_pcd_verts_full"])], 1)

    def forward(
        self, batch: Batch, num_samples: int = 1, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Bodies of a batch, the most likely one (z = 0) first.

        Args:
            num_samples: n ≥ 1 poses per picture. z: noise (B, n, 144); None takes 0 for the first and N(0, 1) for the others.

        Returns (all of the camera's frame, metres): pose6d (B, n, 144) column order, global_orient (B, n, 1, 3, 3),
        body_pose (B, n, 23, 3, 3), betas (B, n, 10), cam (B, n, 3) weak-perspective, transl (B, n, 3), joints (B, n, 24, 3) and
        vertices (B, n, 6890, 3) placed, keypoints_2d (B, n, 25, 2) BODY_25 in the picture's units (pixel / size − 0.5), log_prob (B, n),
        z, context, and with `uncertainty` transl_std (B, 3).
        """
        context = self.encode(batch)
        if self.training:
            self.initialise(batch, context)
        z = self._noise(context, num_samples, z, generator)
        out = self.flow.sample(context, z) | {"context": context}
        out["transl"] = camera.batch_translation(out["cam"], batch)
        flat = pose_body(self.smpl, out.pop("rotations").flatten(0, 1), out["betas"].flatten(0, 1), out["transl"].flatten(0, 1))
        shape = z.shape[:2]
        out["joints"], out["vertices"] = flat.joints.unflatten(0, shape), flat.vertices.unflatten(0, shape)
        out["keypoints_2d"] = camera.project_normalised(keypoints_45(flat)[:, list(BODY_25)].unflatten(0, shape), batch)
        if self.transl_log_std is not None:
            out["transl_std"] = self.transl_log_std(context).clamp(-7, 3).exp()
        return out

    def _noise(self, context: Tensor, num_samples: int, z: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if z is not None:
            return z
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: at least one sample is needed, the first is the most likely pose")
        z = torch.randn(len(context), num_samples, POSE_WIDTH, dtype=context.dtype, device=context.device, generator=generator)
        z[:, 0] = 0
        return z

    def initialise(self, batch: Batch, context: Tensor) -> None:
        """Sets the flow's normalisation from the first training batch's true poses."""
        if not all(bool(module.initialized) for module in self.flow.flow.transforms[::3]):
            with torch.no_grad():
                self.flow.log_prob(self._true_6d(batch)[:, None], context)

    def _true_6d(self, batch: Batch) -> Tensor:
        return matrix_to_rotation_6d(true_pose(batch["smpl_params"]), "prohmr").flatten(1)

    def losses(
        self, batch: Batch, output: dict[str, Tensor], *, noise: Tensor | None = None, weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """The terms of `losses.STAGE_1_WEIGHTS` and their weighted sum "loss", of an output with any number of samples.

        `noise` (B, 144) standard normal blurs the true pose of the likelihood's term (None draws it). Sampled poses' terms are 0 for n = 1.
        """
        params = batch["smpl_params"]
        truth = true_body(self.bodies, params, batch["gender"])
        batch_size, n = output["pose6d"].shape[:2]
        others = max(1, n - 1)
        in_2d = losses.keypoints_2d(output["keypoints_2d"], batch["orig_keypoints_2d"])
        joints, mode = output["joints"], slice(0, 1)
        pose_6d = output["pose6d"]
        terms = {
            "keypoints_2d_mode": in_2d[:, 0].mean(),
            "keypoints_2d_exp": in_2d[:, 1:].sum() / (batch_size * others),
            "keypoints_3d_mode": losses.keypoints_3d(joints[:, mode], batch["keypoints_3d"], aligned=True).mean(),
            "keypoints_3d_full_mode": losses.keypoints_3d(joints[:, mode], batch["keypoints_3d_full"], aligned=False).mean(),
            "v2v_mode": losses.v2v(output["vertices"][:, 0], joints[:, 0], truth.vertices, truth.joints),
            "body_pose_mode": losses.squared(output["body_pose"][:, 0], truth.pose[:, 1:]),
            "global_orient_mode": losses.squared(output["global_orient"][:, 0], truth.pose[:, :1]),
            "betas_mode": losses.squared(output["betas"][:, 0], params["betas"]),
            "pose_6d_mode": losses.orthonormality(pose_6d[:, 0], "prohmr"),
            "pose_6d_exp": losses.orthonormality(pose_6d[:, 1:], "prohmr") if n > 1 else pose_6d.new_zeros(()),
            "nll": self._nll(batch, output["context"], noise),
            "adversarial": ((self.scores(output) - 1) ** 2).sum() / batch_size,
        }
        if "transl_std" in output:
            miss = (output["transl"][:, 0] - params["transl"]).detach() / output["transl_std"]
            terms["transl_nll"] = (0.5 * miss**2 + output["transl_std"].log()).sum(1).mean()
        return losses.total(terms, dict(losses.STAGE_1_WEIGHTS) | dict(weights or {}))

    def _nll(self, batch: Batch, context: Tensor, noise: Tensor | None) -> Tensor:
        pose = self._true_6d(batch)
        noise = torch.randn_like(pose) if noise is None else noise.reshape(pose.shape)
        value, _ = self.flow.log_prob((pose + losses.NLL_NOISE * noise)[:, None], context)
        return -value.mean()

    def scores(self, output: dict[str, Tensor]) -> Tensor:
        """The discriminator's judgement (B · n, 25) of an output's bodies."""
        return self.discriminator(output["body_pose"].reshape(-1, JOINTS - 1, 3, 3), output["betas"].reshape(-1, 10))

    def discriminator_loss(self, output: dict[str, Tensor], body_pose: Tensor, betas: Tensor) -> Tensor:
        """The discriminator's own loss: `body_pose` (R, 23, 3, 3) and `betas` (R, 10) of real people against an output's, held fixed."""
        fake = self.scores({name: output[name].detach() for name in ("body_pose", "betas")})
        real = self.discriminator(body_pose, betas)
        return losses.STAGE_1_WEIGHTS["adversarial"] * ((fake**2).sum() / len(fake) + ((real - 1) ** 2).sum() / len(real))
