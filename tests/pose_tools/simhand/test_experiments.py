"""The kinds of pre-training by name."""

import pytest
import torch

from pose_tools.simhand.experiments import ALIASES, EXPERIMENTS, LossSettings, contrastive_loss, experiment
from pose_tools.simhand.losses import nt_xent, undo_view, weighted_nt_xent


def test_names_and_aliases():
    assert set(EXPERIMENTS) == {"simclr", "simclr_w", "peclr", "peclr_w", "simhand", "simhand_w"}
    assert experiment("handclr_w") is EXPERIMENTS["simhand_w"] and experiment("handclr") is EXPERIMENTS["simhand"]
    assert all(experiment(old) is EXPERIMENTS[new] for old, new in ALIASES.items())
    assert "rotate" in experiment("peclr").steps and "rotate" not in experiment("simclr_w").steps
    with pytest.raises(ValueError, match="unknown experiment 'moco', expected one of simclr"):
        experiment("moco")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_loss_is_undo_and_the_named_loss(name):
    torch.manual_seed(0)
    raw = torch.randn(6, 2, 16)
    batch = {"jitter": torch.randint(-14, 1, (6, 2, 2)), "angle": torch.randint(-45, 45, (6, 2)), "joints": torch.rand(6, 2, 21, 2) * 128}
    kind = experiment(name)
    steps = ("crop", "rotate") if kind.undo else ()
    z1, z2 = (undo_view(raw[:, v], jitter=batch["jitter"][:, v], angle=batch["angle"][:, v], image_size=128, steps=steps) for v in (0, 1))
    if kind.weighted:
        expected = weighted_nt_xent(z1, z2, batch["joints"][:, 0], batch["joints"][:, 1], kind="linear", distance="mpjpe")
    else:
        expected = nt_xent(z1, z2)
    torch.testing.assert_close(contrastive_loss(kind, raw, batch), expected)
    torch.testing.assert_close(contrastive_loss(kind, raw, batch, LossSettings(block=None)), expected)
    if not kind.undo and not kind.weighted:
        torch.testing.assert_close(contrastive_loss(kind, raw, {}), expected)
