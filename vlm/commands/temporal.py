"""`evaluate temporal`: when does it happen, and what happens when: LITA's event localisation, temporal reasoning and dense captions.

Under torchrun each process answers whole batches of its own, so that any number of processes gives the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm.commands.console import DEFAULT_MODEL, CommandError, positive
from vlm.commands.evaluating import files_digest, finish, model_digest, questions_digest
from vlm.commands.loading import add_load_in, load_model
from vlm.commands.processes import all_done, rank_and_world, share_folder, share_folders
from vlm.evaluation import records

MAX_NEW_TOKENS = {"event_loc": 32, "temporal_reasoning": 128, "dvc": 512}
PREDICTIONS = "predictions.jsonl"
Answer = Callable[[Sequence[Any]], list[dict[str, Any]]]
"""Questions → records of what was said."""


def add_arguments(task: argparse.ArgumentParser) -> None:
    task.add_argument("--data", type=Path, required=True, help="a json file of LITA's (ActivityNet Captions, temporal reasoning …)")
    words = "what is asked: when an event happens, the file's own questions, or all events with captions"
    task.add_argument("--kind", choices=tuple(MAX_NEW_TOKENS), required=True, help=words)
    task.add_argument("--media", type=Path, required=True, help="the folder with a folder of frames per video")
    task.add_argument("--name", help="the data set's name (default: the file's folder)")
    task.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder whose tokenizer has the time tokens")
    task.add_argument("--out", type=Path, required=True, help=f"where {PREDICTIONS} and the table go; the same folder again goes on")
    task.add_argument("--protocol", choices=("strict", "compat"), default="strict", help="compat: also as LITA's evaluation defines them")
    task.add_argument("--rescore", action="store_true", help=f"score --out/{PREDICTIONS} again, without the model: id, output, finished")
    task.add_argument("--limit", type=positive, help="only the first so many videos")
    task.add_argument("--tolerance", type=float, default=0.05, help="largest share of records that may be unusable (default 0.05)")
    task.add_argument("--seed", type=int, default=0, help="draws the words of questions (default 0)")
    task.add_argument("--batch-size", type=positive, default=8)
    task.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    add_load_in(task)
    task.add_argument("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:temporal -->")


def main(options: argparse.Namespace) -> int:
    from data.lita_sets import LitaError, LitaSet
    from vlm.evaluation import temporal

    try:
        found = LitaSet(options.data, task=options.kind, media=options.media, name=options.name, limit=options.limit,
                        tolerance=options.tolerance)  # fmt: skip
        asked, without = temporal.read_temporal_questions(found, options.seed)
    except LitaError as error:
        raise CommandError(str(error)) from error
    if not asked:
        raise CommandError(f"{options.data}: none of its answers names two moments, so there is nothing to score")
    rank, world = rank_and_world()
    answer = _model_answers(options)
    if world > 1 and not options.rescore:
        mine = records.share_of(asked, options.batch_size, rank, world)
        _ask(options, asked, mine, answer, share_folder(options.out / "shares", rank, world))
        if not all_done(rank):
            return 0
        answer = _shared_answers(options.out, world)
    if not options.rescore:
        _ask(options, asked, asked, answer, options.out)
    with records.single_writer(options.out):
        replies = _replies(options.out / PREDICTIONS, asked)
        about = [
            f"`scripts/evaluate.py temporal --data {options.data} --kind {options.kind} --seed {options.seed}`: {len(asked)} questions "
            f"about {len({question.video for question in asked})} videos (data {files_digest([options.data])}); {without} without a "
            "true span are left out. Greedy answers."
        ]
        text = temporal.report(asked, replies, options.out, about, compat=options.protocol == "compat")
    return finish(options, "temporal", text)


def _ask(options: argparse.Namespace, asked: Sequence[Any], mine: Sequence[Any], answer: Answer, out: Path) -> None:
    """Completes the predictions in `out` of the questions `mine`, some or all of those `asked`."""
    with records.single_writer(out):
        records.claim(out, _settings(options, asked))
        size = options.batch_size
        records.complete(out / PREDICTIONS, mine, answer, key=lambda question: question.id, batch_size=size, title="temporal")


def _model_answers(options: argparse.Namespace) -> Answer:
    """The model's answers. It is only loaded if something is still to be asked."""
    from vlm.evaluation.asking import Asker

    loaded: list[Asker] = []

    def asker() -> Asker:
        if not loaded:
            model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
            if processor.tokenizer.convert_tokens_to_ids("<t99>") in (None, processor.tokenizer.unk_token_id):
                raise CommandError(f"{options.model}: its tokenizer has no time tokens <t0> … <t99>, so it names no moments; convert "
                                   "HandsOnVLM's weights, or train with `time_tokens: 100`")  # fmt: skip
            loaded.append(Asker(model, processor, max_new_tokens=MAX_NEW_TOKENS[options.kind]))
        return loaded[0]

    def answer(batch: Sequence[Any]) -> list[dict[str, Any]]:
        texts, _, output = asker().generate([question.sample.messages[:-1] for question in batch])
        finished = asker().processor.finished(output)
        return [{"output": text, "finished": ended} for text, ended in zip(texts, finished, strict=True)]

    return answer


def _shared_answers(out: Path, world: int) -> Answer:
    """What the processes of a run have answered, put together."""
    files = [share / PREDICTIONS for share in share_folders(out / "shares", world)]
    found = {record["id"]: record for file in files for record in records.read_records(file)}
    return lambda batch: [found[question.id] for question in batch]


def _replies(path: Path, asked: Sequence[Any]) -> dict[str, Any]:
    from vlm.evaluation.temporal import TemporalReply

    found = records.records_by_id(path)
    missing = [question.id for question in asked if question.id not in found]
    if missing:
        raise CommandError(f"{path}: no prediction for {len(missing)} of {len(asked)} questions, first {missing[0]!r}; run it without "
                           "--rescore, or correct --seed and --limit")  # fmt: skip
    broken = [name for name, record in found.items()
              if not (isinstance(record.get("output"), str) and isinstance(record.get("finished", True), bool))]  # fmt: skip
    if broken:
        raise CommandError(f"{path}: the prediction for {broken[0]!r} has no text under 'output', or no truth value under 'finished'")
    return {question.id: TemporalReply(found[question.id]["output"], found[question.id].get("finished", True)) for question in asked}


def _settings(options: argparse.Namespace, asked: Sequence[Any]) -> dict[str, Any]:
    return {
        "task": "temporal", "questions": questions_digest(asked), "data": files_digest([options.data]),
        "model": model_digest(options.model), "batch_size": options.batch_size, **({"load_in": options.load_in} if options.load_in else {}),
    }  # fmt: skip
