"""`evaluate hoi-qa`: the HOI-QA test files asked of a model, or prediction files scored again without one; strict, or as published.

The predictions are kept in the published form (`predictions.json`, `predictions_ego4d.json`, `predictions_hoi.json`). Questions about
one frame are asked together and its picture is run through the model once (see `vlm.shared_prefix`). Under torchrun each process
answers whole batches of its own, so that any number of processes gives the same files.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pose_tools.files import write_text
from vlm.commands.console import DEFAULT_MODEL, CommandError, positive
from vlm.commands.evaluating import files_digest, model_digest
from vlm.commands.loading import add_load_in, load_model
from vlm.commands.processes import all_done, rank_and_world, share_folder, share_folders

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 50
"""As in the published evaluation."""
PREDICTIONS = "predictions.json"
"""Those about EPIC-KITCHENS; beside it those about Ego4D and of interactions."""


def add_arguments(task: argparse.ArgumentParser) -> None:
    task.add_argument("--protocol", choices=("strict", "compat"), default="strict", help="compat: the published scorer, line by line")
    task.add_argument("--data", type=Path, required=True, help="the folder of epic-test.json, ego4d-test.json and epic-visor-test.json")
    task.add_argument("--frames", type=Path, help="the folder that the pictures' paths start from (default: the parent of --data)")
    task.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
    task.add_argument("--out", type=Path, required=True, help="where answers and tables go; the same folder again goes on")
    task.add_argument("--predictions", type=Path, help="score X.json (beside it X_ego4d.json, X_hoi.json) again instead of asking a model")
    task.add_argument("--against", type=Path, help="prediction files of another run: paired comparison with them (strict)")
    task.add_argument(
        "--tags", action="store_true", help='ask with "[refer]", "[vqa]", "[identify]" before questions; as published, without'
    )
    task.add_argument("--limit", type=positive, help="only the first so many questions; the rest counts as wrong")
    task.add_argument("--max-missing", type=float, default=0.01, help="share of questions whose frame may be missing; they count as wrong")
    task.add_argument("--iou", type=float, default=0.5, help="a box is right from this IoU on; compat: above it (default 0.5)")
    task.add_argument("--batch-size", type=positive, default=16)
    task.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    add_load_in(task)


def main(options: argparse.Namespace) -> int:
    from vlm.evaluation import compat
    from vlm.evaluation import hoi_qa as strict

    if not 0 <= options.iou <= 1:
        raise CommandError(f"--iou {options.iou}: expected a number from 0 to 1")
    items = strict.read_items(options.data, tags=options.tags, any_box=options.protocol == "compat")
    predictions: Any = options.predictions
    if predictions is None:
        answers = _ask(items, options)
        if answers is None:  # another process scores
            return 0
        predictions = options.out / PREDICTIONS
        for name, content in strict.published_form(items, answers).items():
            path = predictions if name == "epic" else predictions.with_name(f"predictions_{name}.json")
            write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    if options.protocol == "compat":
        scores, lines = compat.hoi_qa(predictions, options.data, iou_threshold=options.iou, empty="nan")
        text, file = "\n".join(lines), "compat.txt"
        write_text(options.out / "compat.json", json.dumps(scores, indent=1))
    else:
        scored = strict.score_all(items, predictions, options.iou)
        text, file = strict.report(items, scored), "table.md"
        if options.against:
            other = strict.score_all(items, options.against, options.iou)
            text += f"\nSecond: this run; first: {options.against.name}\n\n{strict.compare(items, other, scored)}"
    write_text(options.out / file, text + "\n")
    print(text)
    print(f"written: {options.out / file}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Prints how much more often the second of two runs is right than the first, question by question, strictly."""
    from vlm.evaluation import hoi_qa as strict

    items = strict.read_items(options.data)
    first, second = (strict.score_all(items, folder / PREDICTIONS) for folder in options.runs)
    print(f"first: {options.runs[0]}, second: {options.runs[1]}\n\n{strict.compare(items, first, second)}")
    return 0


def _ask(items: Sequence[Any], options: argparse.Namespace) -> dict[str, str] | None:
    """Answers by item id, in the published form; None in a process that only answered its share."""
    from vlm.evaluation import records
    from vlm.evaluation.asking import Asker

    rank, world = rank_and_world()
    root = (options.frames or options.data.resolve().parent).resolve()
    there = [item for item in items if _frame(root, item).is_file()]
    missing = len(items) - len(there)
    if missing > options.max_missing * len(items):
        example = next(item for item in items if not _frame(root, item).is_file())
        raise CommandError(
            f"{missing} of {len(items)} questions have no frame under {root}, such as {example.image_path} (at most "
            f"{options.max_missing:.0%} may be missing); name the folder the paths start from with --frames"
        )
    if missing:
        logger.warning("%d of %d questions have no frame under %s; they count as wrong", missing, len(items), root)
    there = by_frame(there[: options.limit])
    mine = records.share_of(there, options.batch_size, rank, world)
    own = share_folder(options.out / "answers", rank, world)
    with records.single_writer(own):
        records.claim(own, _settings(options, world))
        model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
        ask = Asker(model, processor, max_new_tokens=MAX_NEW_TOKENS, share_prefixes=_can_share(model))

        def answer(batch: Sequence[Any]) -> list[dict[str, Any]]:
            picture = [{"type": "image", "image": str(_frame(root, item))} for item in batch]
            turns = [{"role": "user", "content": [p, {"type": "text", "text": item.question}]} for p, item in zip(picture, batch)]
            texts, views = ask.texts([[turn] for turn in turns])
            return [{"output": text, "answer": as_published(text, view[0], processor.dialect)} for text, view in zip(texts, views)]

        records.complete(own / "answers.jsonl", mine, answer, key=lambda item: item.id, batch_size=options.batch_size, title="hoi-qa")
    if world > 1 and not all_done(rank):
        return None
    files = [share / "answers.jsonl" for share in share_folders(options.out / "answers", world)]
    return {record["id"]: record["answer"] for file in files for record in records.read_records(file)}


def by_frame(items: Sequence[Any]) -> list[Any]:
    """The questions of each frame one behind the other, frames in the order of their first."""
    first: dict[str, int] = {}
    for item in items:
        first.setdefault(item.image_path, len(first))
    return sorted(items, key=lambda item: first[item.image_path])


def _can_share(model: Any) -> bool:
    from vlm.shared_prefix import check_can_share

    try:
        check_can_share(model)
    except ValueError as reason:
        logger.info("every question is computed from its first token on: %s", reason)
        return False
    return True


def _settings(options: argparse.Namespace, world: int) -> dict[str, Any]:
    """What answers are a function of."""
    from vlm.evaluation.compat import TEST_FILES

    names = ("tags", "limit", "batch_size", "load_in")
    data = files_digest([options.data / name for name in TEST_FILES.values()])
    chosen = {name: getattr(options, name) for name in names}
    return {"task": "hoi-qa", "order": "by frame", "data": data, "model": model_digest(options.model), "processes": world, **chosen}


def _frame(root: Path, item: Any) -> Path:
    frame = (root / item.image_path).resolve()
    if not frame.is_relative_to(root):
        raise CommandError(f"{item.id}: the path {item.image_path!r} leaves the frames' folder {root}")
    return frame


def as_published(text: str, view: Any, dialect: str) -> str:
    """An answer with its boxes as {<x1><y1><x2><y2>} in hundredths of the whole frame.

    The published dialect on a squashed picture stays letter for letter; what other models write is converted, with decimals. An answer
    that cannot be read in full stays as it is.
    """
    from pose_tools.views import squash
    from vlm.evaluation.asking import reply_of

    if dialect == "minigpt" and view.size is not None and view == squash(view.size, view.out):
        return text
    reply = reply_of(text, view, dialect)
    if not reply.valid or not reply.boxes or view.size is None:
        return text
    shares = ([100 * v / side for v, side in zip(box, view.size * 2, strict=True)] for box in reply.boxes)
    return " ".join("{" + "".join(f"<{min(max(v, 0.0), 100.0):.2f}>" for v in box) + "}" for box in shares)
