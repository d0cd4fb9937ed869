"""Fine-tuning: targets say what the hand is, networks are asked alike singly and in batches, and runs and folders come back whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pose_tools import training
from pose_tools.mano.crops import MIRROR, Augmentation, CropError, HandCrops, hand_view
from pose_tools.simhand.checkpoint import CheckpointError
from pose_tools.simhand.encoder import Encoder
from pose_tools.simhand.evaluate import peclr_joints
from pose_tools.simhand.fine_tuned import FineTuned, NetworkSettings, is_fine_tuned, load_fine_tuned, stand_in_bone, translation
from pose_tools.simhand.finetuning import REGRESSION_WEIGHTS, FinetuningTask, in_picture, mean_bone_length, regression_losses, score
from pose_tools.simhand.hand_targets import detnet_targets, regression_targets
from pose_tools.simhand.lifting import rays
from pose_tools.training import TrainingSettings, train
from tests.pose_tools.mano.posed import mirrored, sample

STRONG = Augmentation(scale=0.4, shift=0.2, rotation=180.0, rotation_share=1.0)
SMALL = {
    "regression_25d": NetworkSettings("regression_25d", image_size=48),
    "detnet": NetworkSettings("detnet", image_size=128, crop_scale=2.0),
}


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder((1, 1, 1, 1), (8, 8, 8, 16), 8, "basic")


def network(kind: str) -> FineTuned:
    return FineTuned(SMALL[kind].build(encoder()).eval(), SMALL[kind], 0.03)


def bone(hand, first: int, second: int) -> float:
    return float(np.linalg.norm(hand.joints_3d[first] - hand.joints_3d[second]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.sampled_from(["left", "right"]))
def test_the_25d_targets_are_the_hand(seed, side):
    """Any turn, scale and shift: key points, depths and the crop's camera give the joints back; a left hand as a right one."""
    hand = sample(seed, side)
    drawn = STRONG.draw(np.random.default_rng(seed))
    found = {k: torch.from_numpy(v).double() for k, v in regression_targets(
        hand, hand_view(hand.bbox_xyxy, 224, scale=1.4, mirror=side == "left", **drawn)).items()}  # fmt: skip
    assert found["has_root_depth"] == 1 and found["has_zrel"].all()
    joints = rays(found["kp2d"], found["intrinsics"]) * (found["zrel"] + found["root_depth"])[:, None] * bone(hand, 9, 10)
    back = peclr_joints(joints).numpy() * (MIRROR if side == "left" else 1.0)
    assert np.abs(back - hand.joints_3d).max() < 1e-4
    perfect = {"kp2d": found["kp2d"][None], "zrel": found["zrel"][None, :, None],
               "kp3d": (rays(found["kp2d"], found["intrinsics"]) * (found["zrel"] + found["root_depth"])[:, None])[None]}  # fmt: skip
    losses = regression_losses(perfect, {name: value[None] for name, value in found.items()}, 224)
    assert losses.keys() == REGRESSION_WEIGHTS.keys() and all(value < 1e-4 for value in losses.values())


class Told(nn.Module):
    """A detection net that says what the targets say."""

    def __init__(self, targets: list[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self.weight, self.targets = nn.Parameter(torch.zeros(1)), targets

    def forward(self, pixels):
        cells = torch.tensor(np.stack([t["heat_map"].reshape(21, -1).argmax(1) for t in self.targets]))
        return {"uv": torch.stack([cells // 32, cells % 32], -1), "xyz": torch.tensor(np.stack([t["location"] for t in self.targets]))}


def test_a_detection_net_that_is_right_gives_the_hand():
    """Left and right: directions and sizes exactly, and the place as near as cells of four pixels allow."""
    for hand in (sample(3), sample(4, "left"), mirrored(sample(3))):
        targets = detnet_targets(hand, hand_view(hand.bbox_xyxy, 128, scale=2.0, mirror=hand.side == "left"))
        assert targets["has_3d"] == 1 and targets["veil"].all()
        [joints] = FineTuned(Told([targets]), SMALL["detnet"], bone(hand, 0, 9)).estimate([in_picture(hand)])
        assert np.abs((joints - joints[0]) - (hand.joints_3d - hand.joints_3d[0])).max() < 1e-5
        assert np.linalg.norm(joints[0] - hand.joints_3d[0]) < 0.06 * hand.joints_3d[0, 2]


def test_translation_finds_where_points_were_seen():
    rng = np.random.default_rng(0)
    points, place = rng.normal(size=(21, 3)) * 0.05, np.array([0.1, -0.05, 0.6])
    seen = (points + place) / (points + place)[:, 2:]
    np.testing.assert_allclose(translation(points, seen), place, atol=1e-9)
    behind = translation(points, (points - place * [1, 1, 2]) / (points - place * [1, 1, 2])[:, 2:])
    assert (points[0] + behind)[2] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", list(SMALL))
def test_batch_is_single_and_mirrored_is_mirrored(kind):
    hands = [sample(0), sample(1, "left")]
    model = network(kind)
    together = model.estimate([in_picture(hand) for hand in hands])
    assert together.shape == (2, 21, 3) and model.estimate([]).shape == (0, 21, 3)
    for hand, joints in zip(hands, together):
        np.testing.assert_allclose(model.estimate([in_picture(hand)])[0], joints, rtol=1e-3, atol=1e-5)
        width = hand.image.shape[1]
        other = mirrored(hand)
        assert other.intrinsics[0, 2] == pytest.approx(width - hand.intrinsics[0, 2])
        np.testing.assert_allclose(model.estimate([in_picture(other)])[0] * MIRROR, joints, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", list(SMALL))
def test_saved_is_reloaded(tmp_path, kind):
    model = network(kind)
    asked = [in_picture(sample(1, "left"))]
    model.save(tmp_path / "net")
    again = load_fine_tuned(tmp_path / "net")
    assert again.settings == model.settings and again.bone_length == 0.03 and is_fine_tuned(tmp_path / "net")
    assert np.array_equal(again.estimate(asked), model.estimate(asked))
    (tmp_path / "net/config.json").write_text('{"network": "detnet"}')
    with pytest.raises(CheckpointError, match="not the config of a fine-tuned hand network .*bone_length"):
        load_fine_tuned(tmp_path / "net")


def test_published_files_are_told_by_their_names(tmp_path):
    theirs = {"fc.": "backend_model.fc.", "root_refinement.": "zroot_ref.zroot_ref."}
    published = {}
    for name, value in network("regression_25d").model.state_dict().items():
        prefix = next((p for p in theirs if name.startswith(p)), "")
        published[theirs.get(prefix, "") + name[len(prefix) :]] = value
    torch.save({"state_dict": published}, tmp_path / "peclr.pth")
    torch.save(network("detnet").model.state_dict(), tmp_path / "detnet.pth")
    for name, kind, size in (("peclr.pth", "regression_25d", 224), ("detnet.pth", "detnet", 128)):
        found = load_fine_tuned(tmp_path / name)
        assert found.settings.kind == kind and found.settings.image_size == size and found.bone_length == stand_in_bone(kind)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"unexpected tensors, of no layout that is known here \(1\): a"):
        load_fine_tuned(tmp_path / "other.pth")
    assert not is_fine_tuned(tmp_path)


def task(kind: str = "regression_25d") -> FinetuningTask:
    hands = [sample(seed, "left" if seed % 2 else "right") for seed in range(8)]
    return FinetuningTask(hands, hands[:2], SMALL[kind], augmentation=STRONG, bone_length=mean_bone_length(hands, kind))


def run(folder, **changes) -> TrainingSettings:
    base = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 1, "log_every": 1, "evaluate_every": 2, "save_every": 1,
            "best_metric": "goodness"}  # fmt: skip
    return TrainingSettings(output=str(folder), **(base | changes))


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def test_resumed_is_uninterrupted(tmp_path, monkeypatch):
    train(SMALL["regression_25d"].build(encoder()).train(), task(), run(tmp_path / "whole"))
    ticks = iter(range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)) * 60)
    first = train(SMALL["regression_25d"].build(encoder()).train(), task(), run(tmp_path / "parts", max_minutes=3.0))
    monkeypatch.undo()
    assert 0 < first.step < 4
    train(SMALL["regression_25d"].build(encoder()).train(), task(), run(tmp_path / "parts", resume=True))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_step_of_the_detection_net(tmp_path):
    result = train(SMALL["detnet"].build(encoder()).train(), task("detnet"), run(tmp_path, max_steps=1, evaluate_every=1, batch_size=2,
                                                                                      micro_batch_size=2))  # fmt: skip
    assert {"pa_mpjpe", "mpjpe", "root_scale_aligned_mpjpe", "root_scale_aligned_auc_20_50"} < result.metrics.keys()


@pytest.mark.parametrize("kind", list(SMALL))
def test_labels_that_are_missing_teach_nothing(kind):
    """Neither camera nor 3-D joints, some key points gone, or no hand at all: finite losses, and none of what is not known."""
    hand = sample(2)
    valid = np.arange(21) != 4
    flat = replace(hand, joints_3d=None, intrinsics=None, vertices=None, pose=None, joints_valid=valid)
    none = replace(flat, joints_2d=None, joints_valid=np.zeros(21, bool))
    known = task(kind)
    known.crops.samples = [flat, none]
    batch = known.collate([known.sample(0, 0), known.sample(1, 0)])
    losses = known.losses(SMALL[kind].build(encoder()), batch)
    counts = known.counts(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    if kind == "detnet":
        assert batch["veil"].sum(1).tolist() == [20.0, 0.0] and not batch["has_3d"].any() and losses["delta"] == 0
        assert losses["heat_map"] > 0
    else:
        assert counts["depth"] == counts["root_depth"] == losses["depth"] == losses["root_depth"] == 0
        assert 0 < counts["key_points"] <= 40


def test_what_cannot_be_judged_or_cut_is_refused():
    hand = sample(1)
    with pytest.raises(ValueError, match="none of 1 hands to judge by has all its 3-D joints"):
        score(network("regression_25d"), [replace(hand, joints_valid=np.arange(21) > 0)])
    with pytest.raises(CropError, match="none of 1 hands has 3-D joints"):
        mean_bone_length([replace(hand, joints_3d=None)], "detnet")
    with pytest.raises(CropError, match=r"sample 0 .*joints_3d span .* m: expected a hand in metres"):
        HandCrops([replace(hand, joints_3d=hand.joints_3d * 1000)], 48, targets=regression_targets).sample(0)
    with pytest.raises(ValueError, match="network.image_size is 224: the detection net's pictures have 128 pixels"):
        NetworkSettings("detnet")
    with pytest.raises(ValueError, match="network.kind is 'resnet': expected regression_25d or detnet"):
        NetworkSettings("resnet")
