"""`evaluate hand-pose`: a hand regressor, or a prediction file, on a labelled set, beside hands that look at no picture; resumable."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.sampling import evenly
from pose_tools.types import HandSample
from vlm.commands.console import CommandError, positive
from vlm.commands.evaluating import files_digest, finish
from vlm.evaluation import records

logger = logging.getLogger(__name__)
FAR = 0.1
"""A detection that overlaps the true hand's box by less (IoU) is another thing."""


def add_arguments(task: argparse.ArgumentParser) -> None:
    from data.hand_samples import KINDS, SPLITS

    task.add_argument("--data", type=Path, required=True, help="the data set's folder, as published or as make_synthetic.py writes it")
    task.add_argument("--kind", choices=tuple(KINDS), default="freihand", help="whose format it is (default freihand)")
    task.add_argument("--split", choices=SPLITS, default="test", help="default test")
    task.add_argument("--setup", choices=("s0", "s1", "s2", "s3"), help="DexYCB's split rule (default s0)")
    task.add_argument("--model", type=Path, help="a regressor's folder (default: the shipped small one), a folder of "
                      "finetune_simhand.py, or a published checkpoint of PeCLR's 2.5-D net or SiMHand's detection net")  # fmt: skip
    task.add_argument("--predictions", type=Path, help="score this prediction file (.json, .zip) instead, FreiHAND's or HO-3D's form")
    task.add_argument("--mano", type=Path, help="the folder of MANO_RIGHT.pkl and MANO_LEFT.pkl (default: the stand-in hand)")
    task.add_argument("--boxes", choices=("truth", "detector"), default="truth", help="where the hand is: the label, or what "
                      "the set has in its place, or detect_hands")  # fmt: skip
    task.add_argument("--out", type=Path, required=True, help="where predictions and tables go; the same folder again goes on")
    task.add_argument("--train", type=Path, help="the folder whose training labels make the constant hands (default: --data)")
    task.add_argument("--train-labels", type=positive, default=1500, help="at most so many of them (default 1500)")
    task.add_argument("--limit", type=positive, help="only so many hands, spread over the set")
    task.add_argument("--batch-size", type=positive, default=32)
    task.add_argument("--submission", type=Path, help="also write the predictions as the servers take them (.json or .zip)")
    task.add_argument("--sheet", type=int, default=6, help="pictures each of the best, middling and worst hands; 0 draws none")
    task.add_argument("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:hand_pose -->")


def main(options: argparse.Namespace) -> int:
    from vlm.evaluation import hand_pose

    models = _models(options.mano)
    hands = _open(options, options.data, options.split, models)
    if options.predictions:
        asked, predicted = _read(options, hands)
    else:
        asked = hand_pose.ask(hands, options.limit)
        with records.single_writer(options.out):
            records.claim(options.out, _settings(options, asked))
            path = options.out / "predictions.jsonl"
            predicted = hand_pose.predict(asked, lambda: _predictor(options, models), path, options.batch_size)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.submission:
        _submit(options, hands, asked, predicted)
    if not asked.labelled:
        print(f"{options.data}: the {options.split} part has no truth to score against; see --submission")
        return 0
    text = hand_pose.report(asked, predicted, _constants(options, models), _about(options), options.out)
    if options.sheet:
        hand_pose.write_sheet(asked, predicted, options.out / "sheet.png", options.sheet)
        print(f"pictures: {options.out / 'sheet.png'}")
    return finish(options, "hand_pose", text)


def _models(path: Path | None) -> Any:
    from data.hand_samples import hand_models

    try:
        return hand_models(path)
    except ValueError as error:
        raise CommandError(f"--mano: {error}") from error


def _open(options: argparse.Namespace, folder: Path, split: str, models: Any) -> Any:
    from data.hand_samples import open_hands

    more: dict[str, Any] = {"setup": options.setup} if options.setup else {}
    if options.setup and options.kind != "dexycb":
        raise CommandError(f"--setup {options.setup} is DexYCB's; {options.kind} has none")
    if options.kind == "freihand":
        more = {"vertices": split == "test"}  # the training part's would fill gigabytes
    return open_hands(options.kind, folder, split, models=models, **more)


def _constants(options: argparse.Namespace, models: Any) -> dict[str, Any]:
    """The hands that look at no picture, of the training labels."""
    from data.hand_samples import with_vertices
    from pose_tools.mano import constant_pose

    train = _open(options, options.train or options.data, "train", models)
    numbers = evenly(len(train), options.train_labels)
    labels = [with_vertices(train.label(int(i)), models) for i in numbers]
    return {"mean pose": constant_pose.mean_pose(labels), "mean joints": constant_pose.mean_joints(labels)}


def _predictor(options: argparse.Namespace, models: Any) -> Any:
    """The regressor as a function of samples."""
    from pose_tools.mano.crops import assumed_intrinsics
    from pose_tools.mano.estimate import HandInPicture, estimate
    from pose_tools.mano.evaluate import PredictedHand
    from pose_tools.mano.loading import load_regressor
    from pose_tools.simhand.fine_tuned import is_fine_tuned

    if options.model and is_fine_tuned(options.model):
        return _fine_tuned(options)
    try:
        model = load_regressor(options.model, mano=models["right"] if options.mano else None)
    except ValueError as error:
        raise CommandError(str(error)) from error

    def predict(samples: Sequence[HandSample]) -> list[PredictedHand | None]:
        boxes = [sample.bbox_xyxy if options.boxes == "truth" else _detected(sample) for sample in samples]
        there = [i for i, box in enumerate(boxes) if box is not None]
        asked = []
        for i in there:
            image, intrinsics = samples[i].image, samples[i].intrinsics
            camera = assumed_intrinsics((image.shape[1], image.shape[0])) if intrinsics is None else intrinsics
            asked.append(HandInPicture(image, np.asarray(boxes[i]), samples[i].side, camera))
        answers: list[PredictedHand | None] = [None] * len(samples)
        for i, found in zip(there, estimate(model, asked), strict=True):
            answers[i] = PredictedHand(np.asarray(found.pose.joints_3d), found.vertices, found.pose.confidence)
        return answers

    return predict


def _fine_tuned(options: argparse.Namespace) -> Any:
    """A network of finetune_simhand.py, or a published one, as a function of samples: joints without a mesh."""
    from dataclasses import replace

    from pose_tools.mano.evaluate import PredictedHand
    from pose_tools.simhand.fine_tuned import load_fine_tuned
    from pose_tools.simhand.finetuning import in_picture

    try:
        network = load_fine_tuned(options.model)
    except ValueError as error:
        raise CommandError(str(error)) from error

    def predict(samples: Sequence[HandSample]) -> list[PredictedHand | None]:
        boxes = [sample.bbox_xyxy if options.boxes == "truth" else _detected(sample) for sample in samples]
        there = [i for i, box in enumerate(boxes) if box is not None]
        answers: list[PredictedHand | None] = [None] * len(samples)
        asked = [in_picture(replace(samples[i], bbox_xyxy=np.asarray(boxes[i]))) for i in there]
        for i, joints in zip(there, network.estimate(asked), strict=True):
            answers[i] = PredictedHand(joints)
        return answers

    return predict


def _detected(sample: HandSample) -> np.ndarray | None:
    """The joints' box after the detector's that overlaps the true one most. Where there is none: None, but the set's own for a hand
    without a truth, which is known to be there."""
    from pose_tools.detect import detect_hands
    from pose_tools.mano.estimate import joints_box
    from pose_tools.metrics import box_iou

    boxes = [np.asarray(hand.bbox_xyxy, float) for hand in detect_hands(sample.image)]
    overlaps = [float(box_iou(box, sample.bbox_xyxy)) for box in boxes]
    if overlaps and max(overlaps) >= FAR:
        return joints_box(boxes[int(np.argmax(overlaps))])
    return sample.bbox_xyxy if sample.joints_3d is None else None


def _read(options: argparse.Namespace, hands: Any) -> tuple[Any, list[Any]]:
    """Predictions from a file, which has one for every picture of the set."""
    from pose_tools.mano.submission import read_submission
    from vlm.evaluation.hand_pose import Asked

    predicted: list[Any] = list(read_submission(options.predictions, "ho3d" if options.kind == "ho3d" else "freihand"))
    if len(predicted) != len(hands):
        raise CommandError(
            f"{options.predictions}: {len(predicted)} predictions for the {len(hands)} pictures of {options.kind}'s {options.split} part"
        )
    everything = list(range(len(hands)))[: len(predicted)]
    return Asked(hands, everything, [hands.label(i) for i in everything]), predicted


def _submit(options: argparse.Namespace, hands: Any, asked: Any, predicted: Sequence[Any]) -> None:
    from pose_tools.mano.submission import SERVERS, write_submission

    if options.kind not in SERVERS:
        raise CommandError(f"--submission: {options.kind} has no server of this form; expected one of {', '.join(SERVERS)}")
    if len(asked.numbers) != len(hands):
        raise CommandError(f"--submission wants all {len(hands)} pictures, {len(asked.numbers)} were asked about; leave --limit out")
    write_submission(options.submission, predicted, options.kind)
    print(f"submission: {options.submission}")


def _settings(options: argparse.Namespace, asked: Any) -> dict[str, Any]:
    """What predictions are a function of."""
    import hashlib

    from pose_tools.mano.loading import DEFAULT_FOLDER

    folder = options.model or DEFAULT_FOLDER
    files = [file for file in (folder, folder / "config.json", folder / "model.safetensors") if file.is_file()]
    labels = hashlib.sha256()
    for name, label in zip(asked.ids, asked.labels):
        labels.update(f"{name} {np.round(np.asarray(label.bbox_xyxy, float), 2).tolist()}\n".encode())
    return {
        "task": "hand-pose", "kind": options.kind, "split": options.split, "setup": options.setup, "boxes": options.boxes,
        "hands": labels.hexdigest()[:16], "model": files_digest(files), "mano": str(options.mano) if options.mano else None,
    }  # fmt: skip


def _about(options: argparse.Namespace) -> str:
    source = f"--predictions {options.predictions}" if options.predictions else f"--model {options.model or 'mano_small'}"
    boxes = "true boxes" if options.boxes == "truth" else "the detector's boxes"
    return (
        f"`scripts/evaluate.py hand-pose --kind {options.kind} --split {options.split} --data {options.data} {source}`, {boxes}, "
        f"{'the given MANO' if options.mano else 'the stand-in hand'}."
    )
