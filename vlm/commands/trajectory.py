"""`evaluate trajectory`: where will each hand go in the next second, beside the forecasts that need no model; resumable.

Under torchrun each process answers whole batches of its own, so that any number of processes gives the same files.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm.commands.console import DEFAULT_MODEL, CommandError, positive
from vlm.commands.evaluating import chosen, files_digest, finish, model_digest, questions_digest
from vlm.commands.loading import add_load_in, load_model
from vlm.commands.processes import all_done, rank_and_world, share_folder, share_folders
from vlm.evaluation import records, tables

logger = logging.getLogger(__name__)
Answerer = Callable[[Any], Any]
"""A condition → a function from conversations and question ids to replies."""


def add_arguments(task: argparse.ArgumentParser) -> None:
    task.add_argument("--data", type=Path, required=True, help="a folder of clips (one split), as make_synthetic.py clips writes it")
    task.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
    task.add_argument("--out", type=Path, required=True, help="where records and tables go; the same folder again goes on where it stopped")
    task.add_argument("--train", type=Path, help="the training clips, for the baselines that learn (train mean path, past only)")
    task.add_argument("--clips", type=positive, help="so many clips, drawn by the seed (default: all)")
    task.add_argument("--train-clips", type=positive, default=8000, help="at most so many training clips (default 8000)")
    task.add_argument("--futures", type=positive, default=1, help="K futures of the model as shipped, for minADE and minFDE (default 1)")
    task.add_argument("--protocol", choices=("strict", "compat"), default="strict", help="compat: also what HandsOnVLM's prints")
    task.add_argument(
        "--asked-as", choices=("ours", "vhp", "rbhp"), default="ours",
        help="our words, or HandsOnVLM's: vhp names the action, rbhp asks the questions of --questions about the clips that it knows",
    )  # fmt: skip
    task.add_argument("--questions", type=Path, help="rbhp: the file of reasoning questions (ek100_questions_val.json)")
    task.add_argument("--annotations", type=Path, help="the csv file of an EPIC-KITCHENS folder with several")
    task.add_argument("--first-uid", type=int, default=0, help="number of the first row of --annotations (validation: rows of train)")
    task.add_argument("--conditions", nargs="+", help="only these, by name, such as 'as shipped' 'no image'")
    task.add_argument("--rescore", action="store_true", help="score the predictions in --out again, without the model")
    task.add_argument("--seed", type=int, default=0, help="draws the clips, the swaps of goals and the futures (default 0)")
    task.add_argument("--batch-size", type=positive, default=32)
    task.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    add_load_in(task)
    task.add_argument("--sheet", type=int, default=2, help="rows of pictures each of best, middle and worst answers; 0 draws none")
    task.add_argument("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:trajectory -->")


def main(options: argparse.Namespace) -> int:
    from vlm.evaluation import trajectory_run
    from vlm.evaluation.trajectory import CONDITIONS
    from vlm.evaluation.trajectory_baselines import penalties
    from vlm.evaluation.trajectory_sheet import write_sheets

    if options.first_uid < 0:
        raise CommandError(f"--first-uid is {options.first_uid}, expected 0 or more")
    conditions = chosen(options.conditions, CONDITIONS)
    asked = _questions(options.data, options.clips, options.seed, _reader_options(options))
    rank, world = rank_and_world()
    if not options.rescore:
        conditions = _fitting(conditions, options.model)
    if world > 1 and not options.rescore:
        own = share_folder(options.out / "shares", rank, world)
        with records.single_writer(own):
            records.claim(own, _settings(options, asked))
            _ask(options, conditions, asked, own, _model_replies(options, asked), (rank, world))
        if not all_done(rank):
            return 0
    with records.single_writer(options.out):
        if options.rescore:
            replies = _kept_replies(options.out, conditions, asked)
            _check_complete(options.out, replies, asked)
        else:
            records.claim(options.out, _settings(options, asked))
            answer = _model_replies(options, asked) if world == 1 else _shared_replies(options.out, world, conditions, asked)
            replies = _ask(options, conditions, asked, options.out, answer)
        train = _questions(options.train, options.train_clips, options.seed) if options.train else None
        everything = replies | trajectory_run.baseline_replies(asked, train, options.out)
        text = trajectory_run.report(asked, everything, options.out, _about(options, asked, train), compat=options.protocol == "compat")
        shipped = replies.get(CONDITIONS[0].name)
        if options.sheet and shipped:
            for path in write_sheets(asked, shipped, penalties(asked), options.out, rows=options.sheet, seed=options.seed):
                print(f"pictures: {path}")
    return finish(options, "trajectory", text)


def compare(options: argparse.Namespace) -> int:
    """Prints how much better the second of two trajectory runs is than the first, action by action."""
    from vlm.evaluation.trajectory import Condition
    from vlm.evaluation.trajectory_baselines import penalties
    from vlm.evaluation.trajectory_tables import Scores, difference_cell

    asked = _questions(options.data, None, 0)
    condition = Condition(options.condition)
    names = [str(folder) for folder in options.runs]
    found = [_kept_replies(folder, [condition], asked)[condition.name] for folder in options.runs]
    scores = Scores(asked, dict(zip(("first", "second"), found)), penalties(asked))
    common = scores.common("second", "first")
    if common is None:
        raise CommandError(f"{names[0]} and {names[1]} have no question in common; name the --data that both were made with")
    second, first, clusters = common
    cells = [f"{np.mean(first):.2f}", f"{np.mean(second):.2f}", scores.ratio("second", "first"), difference_cell(second, first, clusters)]
    print(tables.markdown_table(["hands", *(f"ADE, {name}" for name in names), "second / first", "difference"], [[len(first), *cells]]))
    return 0


def _reader_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the clips' reader is told. Published labels cover a part of the rows, so those without one are no fault there."""
    if (options.asked_as == "rbhp") != (options.questions is not None):
        raise CommandError("--asked-as rbhp and --questions FILE come together: the file says what is asked about which clips")
    found: dict[str, Any] = {"annotations": options.annotations, "first_uid": options.first_uid}
    if options.asked_as != "ours":
        found |= {"wording": {"vhp": "action", "rbhp": "reasoning"}[options.asked_as], "questions": options.questions, "tolerance": 1.0}
    return found


def _questions(folder: Path, clips: int | None, seed: int, options: dict[str, Any] | None = None) -> list[Any]:
    from vlm.evaluation.referral import split_of
    from vlm.evaluation.trajectory import read_clip_questions, select_clips

    split = split_of(folder) if (folder / "manifest.json").is_file() else "test"  # real recordings have no manifest
    return select_clips(read_clip_questions(folder, split=split, seed=seed, options=options), clips, seed)


def _fitting(conditions: Sequence[Any], model: Path) -> list[Any]:
    """The conditions that a model can be asked under: one without an encoder of tracked hands is shown none."""
    from vlm import HandVLMProcessor
    from vlm.adapters import base_of, is_adapter

    if not is_adapter(model) and not (model / "config.json").is_file():
        load_model(model)  # says what is wrong with the folder
    if "track" in HandVLMProcessor.from_pretrained(base_of(model) if is_adapter(model) else model).pose_encoders:
        return list(conditions)
    return [replace(condition, pose="off") for condition in conditions if condition.name != "hand tokens off"]


def _ask(
    options: argparse.Namespace,
    conditions: Sequence[Any],
    asked: Sequence[Any],
    out: Path,
    answer: Answerer,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Replies per condition, kept in `out`."""
    from vlm.evaluation import trajectory_run

    tokens = _Tracks(options.data, asked)
    return {
        condition.name: trajectory_run.ask_all(
            asked, condition, answer(condition), tokens, out=out, batch_size=options.batch_size, seed=options.seed, share=share
        )
        for condition in conditions
    }


def _model_replies(options: argparse.Namespace, asked: Sequence[Any]) -> Answerer:
    """The model's answers. It is only loaded if something is still to be asked."""
    from vlm.evaluation.trajectory import CONDITIONS
    from vlm.evaluation.trajectory_asking import PathAsker

    loaded: list[Any] = []

    def model() -> Any:
        if not loaded:
            loaded.append(load_model(options.model, device=options.device, load_in=options.load_in))
            if loaded[0][0].config.trajectory is None:
                raise CommandError(f"{options.model}: no path head, so it forecasts nothing; train it on clips, or choose another --model")
        return loaded[0]

    def of(condition: Any) -> Any:
        futures = options.futures if condition.name == CONDITIONS[0].name else 1
        return lambda turns, names: PathAsker(*model(), steps=asked[0].valid.shape[1], futures=futures, seed=options.seed)(turns, names)

    return of


def _shared_replies(out: Path, world: int, conditions: Sequence[Any], asked: Sequence[Any]) -> Answerer:
    """What the processes of a run have answered, put together."""
    found: dict[str, Any] = {condition.name: {} for condition in conditions}
    for share in share_folders(out / "shares", world):
        for name, replies in _kept_replies(share, conditions, asked, some=False).items():
            found[name] |= replies
    return lambda condition: lambda turns, names: [found[condition.name][name] for name in names]


class _Tracks:
    """The tracked hands of a clip, (2 · frames, 11), made when first asked for."""

    def __init__(self, folder: Path, asked: Sequence[Any]) -> None:
        self.folder, self.asked = folder, asked
        self.cached: Any = None

    def __call__(self, question: Any) -> np.ndarray:
        if self.cached is None:
            from data.tracks import cached_tracks

            self.cached = cached_tracks(self.folder, [(q.start, [Path(frame) for frame in q.frames]) for q in self.asked])
        return self.cached[question.start]


def _kept_replies(folder: Path, conditions: Sequence[Any], asked: Sequence[Any], *, some: bool = True) -> dict[str, Any]:
    """The replies in a folder's predictions to the questions of `asked`, by condition; with `some`, none is an error."""
    from vlm.evaluation.run import predictions_path
    from vlm.evaluation.trajectory_scoring import PathReply

    known = {question.id for question in asked}
    replies = {}
    for condition in conditions:
        found = records.records_by_id(predictions_path(folder, condition.name))
        if kept := {name: PathReply.from_record(record) for name, record in found.items() if name in known}:
            replies[condition.name] = kept
    if some and not replies:
        names = ", ".join(repr(condition.name) for condition in conditions)
        raise CommandError(f"{folder}: no predictions of {names} for these clips; run `evaluate trajectory --out {folder}` first")
    return replies


def _check_complete(folder: Path, replies: dict[str, Any], asked: Sequence[Any]) -> None:
    """CommandError for a condition that not all of `asked` were put under, as a run that was stopped leaves it."""
    for name, kept in replies.items():
        missing = [question.id for question in asked if question.id not in kept]
        if missing:
            raise CommandError(
                f"{folder}: {name!r} has no prediction for {len(missing)} of {len(asked)} questions, first {missing[0]!r}; run it without "
                "--rescore to complete it, or name other --conditions"
            )


def _settings(options: argparse.Namespace, asked: Sequence[Any]) -> dict[str, Any]:
    """What records are a function of."""
    return {
        "task": "trajectory",
        "questions": questions_digest(asked),
        "data": _data(options.data),
        "model": model_digest(options.model),
        "futures": options.futures,
        "seed": options.seed,
        "batch_size": options.batch_size,
        **({"load_in": options.load_in} if options.load_in else {}),
    }


def _template(model: Path) -> str | None:
    """The words that stand around a question; None where the model is not at hand, as it need not be for --rescore."""
    from vlm.adapters import base_of, is_adapter
    from vlm.settings import SettingsError

    try:
        file = (base_of(model) if is_adapter(model) else model) / "processor_config.json"
    except SettingsError:
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("template") if file.is_file() else None


def _data(folder: Path) -> str:
    manifest = folder / "manifest.json"
    return files_digest([manifest] if manifest.is_file() else sorted(folder.glob("*.csv")))


def _about(options: argparse.Namespace, asked: Sequence[Any], train: Sequence[Any] | None) -> list[str]:
    starts = len({question.start for question in asked})
    made = json.loads((options.out / "settings.json").read_text(encoding="utf-8"))
    words = "" if options.asked_as == "ours" else f" --asked-as {options.asked_as}"
    template = _template(options.model)
    asked_in = f", template {template}" if template else ""
    learnt = f"; baselines learnt from {len(train)} actions of `{options.train}`" if train else ""
    return [
        f"`scripts/evaluate.py trajectory --data {options.data} --seed {options.seed}{words}`: {len(asked)} actions about {starts} clips, "
        f"both hands' next {asked[0].future_times[-1] - asked[0].past_times[-1]:g} s in {asked[0].valid.shape[1]} steps "
        f"(data {made['data']}, model {made['model']}{asked_in}){learnt}. One greedy answer each.",
    ]
