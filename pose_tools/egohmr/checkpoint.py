"""Loading both stages' published checkpoints (and our own of other sizes) by names; anything missing or extra is refused.

A checkpoint holds SMPL's licensed arrays as well: they are left aside, and the user's own body model is given beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pose_tools.body_models import Smpl
from pose_tools.egohmr.stage1 import Stage1, Stage1Config
from pose_tools.egohmr.stage2 import Stage2, Stage2Config
from pose_tools.simhand.checkpoint import CheckpointError, Source, check_fit, read_state_dict, some, torchvision_name
from pose_tools.simhand.encoder import Encoder, load_encoder

_IGNORED = re.compile(r"smpl(_male|_female)?\..+|.*\.dummy_buffer|.*\._log_z|(.+\.)?sequence_pos_encoder\.pe|initialized")
_FLOW = re.compile(r"flow\.flow\._transform\._transforms\.(\d+)\.(?:transform_net\.)?(.+)")
_FEATURES = re.compile(r"flow\.flow\._transform\._transforms\.(\d+)\.(identity|transform)_features")
_STATISTICS = {"init_betas": "init_betas", "shape": "init_betas", "betas": "init_betas", "init_cam": "init_cam", "cam": "init_cam"}


def load_stage1(source: Source, smpl: Smpl | Mapping[str, Smpl], **statistics: Any) -> Stage1:
    """Stage 1 from a checkpoint file or its tensors by name, in eval mode. Sizes are read off the tensors.

    Args:
        smpl: the neutral body, or {"neutral", "male", "female"}: the losses compare with the gendered ones.
        statistics: `init_betas` (10,) and `init_cam` (3,) (or `shape`, `cam`, as smpl_mean_params.npz calls them; its `pose` is not
            used), where the checkpoint does not hold them.

    Raises CheckpointError for a file that is not a stage-1 checkpoint, with the lists of what is missing, unexpected or misshapen.
    """
    tensors = _tensors(source, stage=1)
    for name in [name for name in tensors if _FEATURES.fullmatch(name)]:
        _check_halves(name, tensors.pop(name))
    statistics.pop("pose", None)
    unknown = set(statistics) - set(_STATISTICS)
    if unknown:
        raise TypeError(f"unknown statistics {', '.join(sorted(unknown))}: expected {', '.join(_STATISTICS)}")
    for name, value in statistics.items():
        tensors[f"flow.fc_head.{_STATISTICS[name]}"] = torch.as_tensor(value, dtype=torch.float32).reshape(1, 1, -1)
    backbone = _backbone(tensors)
    found = {_ours(name): value for name, value in tensors.items()}
    norms = sorted({int(name.split(".")[3]) for name in found if re.fullmatch(r"flow\.flow\.transforms\.\d+\.log_scale", name)})
    for number in norms:  # weights that were trained have had their first batch
        found.setdefault(f"flow.flow.transforms.{number}.initialized", torch.tensor(True))
    config = Stage1Config(
        scene_width=_size(found, "scene_enc.fc_c.weight", 0), scene_hidden=_size(found, "scene_enc.fc_c.weight", 1),
        flow_hidden=_size(found, "flow.fc_head.layers.0.weight", 0), flow_repetitions=max(1, len(norms)),
        discriminator_hidden=_size(found, "discriminator.D_alljoints_fc2.weight", 0), uncertainty="transl_log_std.weight" in found,
    )  # fmt: skip
    return _fill(Stage1(smpl, config, backbone), found, "EgoHMR's stage 1")


def load_stage2(source: Source, smpl: Smpl | Mapping[str, Smpl], mean: Any, std: Any) -> Stage2:
    """Stage 2 from a checkpoint file or its tensors by name, in eval mode; `mean`, `std` (144,) are preprocess_stats.npz's Xmean and Xstd.

    Raises CheckpointError for a file that is not a stage-2 checkpoint, with the lists of what is missing, unexpected or misshapen.
    """
    tensors = _tensors(source, stage=2)
    backbone = _backbone(tensors)
    found = {_ours(name): value for name, value in tensors.items()}
    blocks = {name.split(".")[2] for name in found if name.startswith("diffusion_model.gconv_layers.")}
    config = Stage2Config(
        scene_width=_size(found, "scene_enc.fc_c.weight", 0), scene_hidden=_size(found, "scene_enc.fc_c.weight", 1),
        transl_hidden=_size(found, "transl_enc.layers.0.weight", 0), transl_width=_size(found, "transl_enc.layers.2.weight", 0),
        latent_width=_size(found, "pose_embedding.weight", 0), gcn_width=_size(found, "diffusion_model.gconv_output.W", 1),
        gcn_blocks=len(blocks), betas_hidden=_size(found, "beta_layer.layers.0.weight", 0),
    )  # fmt: skip
    return _fill(Stage2(smpl, mean, std, config, backbone), found, "EgoHMR's stage 2")


def load_backbone(source: Source) -> Encoder:
    """The picture's encoder of either stage's (or of ProHMR's) checkpoint, or of any layout that `simhand.encoder.load_encoder` knows."""
    tensors = read_state_dict(source)
    if not any(name.startswith("backbone.conv1") for name in tensors):
        return load_encoder(tensors)
    return load_encoder({name.removeprefix("backbone."): value.float() for name, value in tensors.items() if name.startswith("backbone.")})


def published_state_dict(model: Stage1 | Stage2) -> dict[str, Tensor]:
    """A model's tensors by the published names, without the body's: what the loaders read; save it as {"state_dict": …}."""
    found = {_published(name): value.detach().clone() for name, value in model.state_dict().items()}
    if isinstance(model, Stage1):
        for number, transform in enumerate(model.flow.flow.transforms):
            if hasattr(transform, "first"):
                for half, start in (("identity", transform.first), ("transform", 1 - transform.first)):
                    found[f"flow.flow._transform._transforms.{number}.{half}_features"] = torch.arange(start, model.flow.flow.width, 2)
    return found


def _tensors(source: Source, stage: int) -> dict[str, Tensor]:
    tensors = {name: value for name, value in read_state_dict(source).items() if not _IGNORED.fullmatch(name)}
    is_first, is_second = (any(name.startswith(prefix) for name in tensors) for prefix in ("flow.", "diffusion_model."))
    if (is_second and not is_first) if stage == 1 else (is_first and not is_second):
        other = 3 - stage
        raise CheckpointError(
            f"this is a checkpoint of EgoHMR's stage {other}, asked for stage {stage}: use load_stage{other}, or give the other file"
        )
    return tensors


def _backbone(tensors: dict[str, Tensor]) -> Encoder:
    """The picture's encoder; its tensors are taken out of `tensors`."""
    own = {name.removeprefix("backbone."): tensors.pop(name) for name in list(tensors) if name.startswith("backbone.")}
    if not own:
        raise CheckpointError(f"no tensor of the picture's encoder (backbone.*) in it; found {some(list(tensors))}")
    strange = [name for name in own if torchvision_name(name) != name]
    if strange:
        raise CheckpointError(f"unexpected tensors in the picture's encoder: {some(strange)}")
    return load_encoder(own)


def _check_halves(name: str, value: Tensor) -> None:
    """The couplings' halves are even and odd numbers in turn: the only ones that this flow has."""
    match = _FEATURES.fullmatch(name)
    if match is None:
        return
    odd = (int(match[1]) // 3 % 2 == 1) == (match[2] == "identity")
    if value.tolist() != list(range(int(odd), 2 * len(value), 2)):
        raise CheckpointError(f"{name}: expected the {'odd' if odd else 'even'} numbers in order, got {value[:6].tolist()} …")


def _ours(name: str) -> str:
    if match := _FLOW.fullmatch(name):
        return f"flow.flow.transforms.{match[1]}.{match[2]}"
    if name.startswith("input_process.poseEmbedding."):
        return name.replace("input_process.poseEmbedding.", "pose_embedding.")
    return name.removeprefix("embed_timestep.")


def _published(name: str) -> str:
    if match := re.fullmatch(r"flow\.flow\.transforms\.(\d+)\.(.+)", name):
        inner = "transform_net." if match[2].startswith(("initial_layer", "blocks", "final_layer")) else ""
        return f"flow.flow._transform._transforms.{match[1]}.{inner}{match[2]}"
    if name.startswith("backbone."):
        return f"backbone.{torchvision_name(name)}"
    if name.startswith("pose_embedding."):
        return name.replace("pose_embedding.", "input_process.poseEmbedding.")
    return f"embed_timestep.{name}" if name.startswith("time_embed.") else name


def _size(found: Mapping[str, Tensor], name: str, dimension: int) -> int:
    if name not in found or found[name].dim() <= dimension:
        raise CheckpointError(f"{name} is {'of shape ' + str(tuple(found[name].shape)) if name in found else 'missing'}")
    return found[name].shape[dimension]


def _fill(model: nn.Module, found: dict[str, Tensor], what: str) -> Any:
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    model.load_state_dict(check_fit(found, expected, what), strict=False)
    return model.eval()
