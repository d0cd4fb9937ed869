"""Fine-tunes a pre-trained hand encoder into a network that says where the joints are: PeCLR's 2.5-D net, or the detection net.

    python scripts/finetune_simhand.py CONFIG.yaml [--set encoder.start=runs/.../encoder.safetensors ...]     (or with torchrun)
    python scripts/finetune_simhand.py CONFIG.yaml --check        labels, contact sheet, one batch; no training
    python scripts/finetune_simhand.py CONFIG.yaml --publish      best weights of the run → the config's `asset`
    python scripts/evaluate.py hand-pose --model ASSET --data DATA --out OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data.hand_samples import hand_models
from pose_tools.files import write_text
from pose_tools.mano.crops import Augmentation, HandCrops
from pose_tools.mano.training_task import label_sheet
from pose_tools.simhand.detnet import DetNet
from pose_tools.simhand.encoder import EncoderSettings
from pose_tools.simhand.fine_tuned import FineTuned, NetworkSettings
from pose_tools.simhand.finetuning import FinetuningTask, mean_bone_length
from pose_tools.simhand.regression_25d import Regression25D
from pose_tools.training import TrainingError, TrainingSettings
from scripts.train_mano import DataSettings, read_all
from vlm import settings as typed
from vlm.commands.console import run
from vlm.commands.pose_training import announce, best_of_run, command_line, fit_or_check, in_words, is_main_process, training_command

BONE = "bone_length.json"


@dataclass(frozen=True)
class FinetuningSettings:
    """`data` as in train_mano.py: FreiHAND, DexYCB, AssemblyHands … by kind. `encoder.start`: the pre-trained encoder, of any published
    layout or of pretrain_simhand.py; null begins from nothing. `judged`: so many held-out hands are scored while training."""

    data: tuple[DataSettings, ...]
    training: TrainingSettings
    network: NetworkSettings = field(default_factory=NetworkSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    hand_model: str | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    judged: int = 500
    asset: str | None = None


def build(settings: FinetuningSettings) -> Regression25D | DetNet:
    """The network at the start of a run; the same for the same seed."""
    torch.manual_seed(settings.training.seed)
    return settings.network.build(settings.encoder.build()).train()


def make_task(settings: FinetuningSettings) -> FinetuningTask:
    seed = settings.training.seed
    learn, judge = read_all(settings.data, hand_models(settings.hand_model), seed)
    return FinetuningTask(learn, judge, settings.network, augmentation=settings.augmentation, seed=seed, judged=settings.judged,
                          bone_length=mean_bone_length(learn, settings.network.kind))  # fmt: skip


def fit(settings: FinetuningSettings, check_only: bool) -> None:
    if settings.training.micro_batch_size < 2:
        raise TrainingError(f"micro_batch_size is {settings.training.micro_batch_size}: batch norm needs at least 2 hands at a time")
    task, model = make_task(settings), build(settings)
    if is_main_process():
        network = settings.network
        plain = HandCrops(task.crops.samples, network.image_size, scale=network.crop_scale, augmentation=settings.augmentation,
                          seed=settings.training.seed)  # fmt: skip
        counts = f"{len(task)} hands to learn, {len(task.judged)} to judge; {network.kind} from {settings.encoder.start or 'nothing'}"
        announce(settings.training, label_sheet(plain), model, counts)
        write_text(Path(settings.training.output) / BONE, json.dumps(task.bone_length))
    fit_or_check(model, task, settings.training, check_only)


def publish(settings: FinetuningSettings) -> None:
    """The run's best weights as a folder for `load_fine_tuned` and `evaluate.py hand-pose --model`."""
    asset, weights, scores = best_of_run(settings.training, settings.asset, BONE)
    model = build(settings)
    model.load_state_dict(weights)
    bone_length = float(json.loads((Path(settings.training.output) / BONE).read_text()))
    FineTuned(model.eval(), settings.network, bone_length).save(asset)
    print(f"wrote {asset}: {in_words(scores)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    options = command_line(__doc__, FinetuningSettings, "simhand_finetune_small", "network.kind=detnet").parse_args(arguments)
    with training_command(ValueError):
        settings = typed.load(FinetuningSettings, options.config, options.set)
        publish(settings) if options.publish else fit(settings, options.check)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
