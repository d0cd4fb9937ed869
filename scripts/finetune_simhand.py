"""Fine-tunes a pre-trained hand encoder into a network that says where the joints are: PeCLR's 2.5-D net, or the detection net.

    python scripts/finetune_simhand.py CONFIG.yaml [--set encoder.start=runs/.../encoder.safetensors ...]     (or with torchrun)
    python scripts/finetune_simhand.py CONFIG.yaml --check        labels, contact sheet, one batch; no training
    python scripts/finetune_simhand.py CONFIG.yaml --publish      best weights of the run → the config's `asset`
    python scripts/evaluate.py hand-pose --model ASSET --data DATA --out OUT
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file

from data.hand_samples import HandDataError, hand_models
from pose_tools.files import write_text
from pose_tools.image_io import write_image
from pose_tools.mano.crops import Augmentation, CropError, HandCrops
from pose_tools.mano.label_checks import LabelError
from pose_tools.mano.sample_cache import SampleCacheError
from pose_tools.mano.training_task import label_sheet
from pose_tools.simhand.detnet import DetNet
from pose_tools.simhand.encoder import CheckpointError, EncoderSettings
from pose_tools.simhand.fine_tuned import FineTuned, NetworkSettings
from pose_tools.simhand.finetuning import FinetuningTask, mean_bone_length
from pose_tools.simhand.regression_25d import Regression25D
from pose_tools.training import TrainingError, TrainingSettings, train
from scripts.train_mano import DataSettings, Mixed, read_data
from vlm import settings as typed
from vlm.commands.console import CommandError, run

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
    models, seed = hand_models(settings.hand_model), settings.training.seed
    pairs = [read_data(data, models, seed) for data in settings.data]
    learn, judged = Mixed([pair[0] for pair in pairs], [data.share for data in settings.data]), [pair[1] for pair in pairs if len(pair[1])]
    if not judged:
        raise TrainingError("no sample is held out to judge by: set `validation` above 0 for a data set")
    judge = Mixed(judged, [float(len(part)) for part in judged])
    return FinetuningTask(learn, judge, settings.network, augmentation=settings.augmentation, seed=seed, judged=settings.judged,
                          bone_length=mean_bone_length(learn, settings.network.kind))  # fmt: skip


def fit(settings: FinetuningSettings, check_only: bool) -> None:
    if settings.training.micro_batch_size < 2:
        raise TrainingError(f"micro_batch_size is {settings.training.micro_batch_size}: batch norm needs at least 2 hands at a time")
    task, model = make_task(settings), build(settings)
    if int(os.environ.get("RANK", 0)) == 0:
        output = Path(settings.training.output)
        output.mkdir(parents=True, exist_ok=True)
        network = settings.network
        plain = HandCrops(task.crops.samples, network.image_size, scale=network.crop_scale, augmentation=settings.augmentation,
                          seed=settings.training.seed)  # fmt: skip
        write_image(output / "labels.jpg", label_sheet(plain))
        write_text(output / BONE, json.dumps(task.bone_length))
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{len(task)} hands to learn, {len(task.judged)} to judge; {network.kind}, {millions:.2f} M parameters, from "
              f"{settings.encoder.start or 'nothing'}; look at {output / 'labels.jpg'}")  # fmt: skip
    if check_only:
        batch = task.collate([task.sample(i, 0) for i in range(min(8, len(task)))])
        counts = task.counts(batch)
        print({name: round(float(v.detach() / counts[name].clamp(min=1)), 4) for name, v in task.losses(model, batch).items()})
        return
    result = train(model, task, settings.training)
    print(f"step {result.step}, best: {result.best}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else gloo's threads may still run when the process ends, and abort it


def publish(settings: FinetuningSettings) -> None:
    """The run's best weights as a folder for `load_fine_tuned` and `evaluate.py hand-pose --model`."""
    output = Path(settings.training.output)
    if not settings.asset:
        raise TrainingError("--publish needs `asset` in the config: the folder to write")
    for file in (output / "best.safetensors", output / BONE):
        if not file.is_file():
            raise TrainingError(f"{file} is missing: train first, at least to the first evaluation")
    model = build(settings)
    model.load_state_dict(load_file(output / "best.safetensors"))
    FineTuned(model.eval(), settings.network, float(json.loads((output / BONE).read_text()))).save(settings.asset)
    print(f"wrote {settings.asset}: {json.loads((output / 'best.json').read_text())}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of FinetuningSettings, such as scripts/configs/simhand_finetune_small.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as network.kind=detnet")
    parser.add_argument("--check", action="store_true", help="check the labels, write the contact sheet, run one batch")
    parser.add_argument("--publish", action="store_true", help="write the best weights of the run to the config's asset folder")
    options = parser.parse_args(arguments)
    logging.getLogger("pose_tools").setLevel(logging.INFO)
    try:
        settings = typed.load(FinetuningSettings, options.config, options.set)
        publish(settings) if options.publish else fit(settings, options.check)
    except (HandDataError, LabelError, CropError, SampleCacheError, CheckpointError, TrainingError, ValueError) as error:
        raise CommandError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
