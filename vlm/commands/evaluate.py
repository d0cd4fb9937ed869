"""`evaluate referral|trajectory|temporal|hand-pose|body|tools|hoi-qa|compare`: numbers for a model, resumable, beside baselines, in a
folder and in its card."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.files import write_text
from vlm.commands import body, hand_pose, hoi_qa, temporal, trajectory
from vlm.commands.console import DEFAULT_MODEL, CommandError, positive
from vlm.commands.evaluating import chosen, files_digest, finish, model_digest, questions_digest
from vlm.commands.loading import add_load_in, load_model
from vlm.evaluation import records, tables

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    names = "referral|trajectory|temporal|hand-pose|body|tools|hoi-qa|compare"
    tasks = main_parser.add_subparsers(dest="task", required=True, metavar=names)

    def common(task: argparse.ArgumentParser) -> None:
        task.add_argument(
            "--data", type=Path, required=True, help="a folder of synthetic scenes (one split), as make_synthetic.py stills writes it"
        )
        task.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
        task.add_argument(
            "--out", type=Path, required=True, help="where records and tables go; the same folder again goes on where it stopped"
        )
        task.add_argument("--questions", type=positive, default=1000, help="questions per row of the table (default 1000)")
        task.add_argument("--limit", type=positive, help="only the first so many scenes")
        task.add_argument("--seed", type=int, default=0, help="draws the questions and the shuffles (default 0)")
        task.add_argument("--batch-size", type=positive, default=32)
        task.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
        add_load_in(task)
        task.add_argument("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:TASK -->")

    referral = tasks.add_parser("referral", help="where are the hands, and what do they hold")
    common(referral)
    referral.add_argument("--train", type=Path, help="the training scenes, for the baseline 'train average'")
    referral.add_argument("--none-share", type=float, default=0.25, help="share of questions whose answer is 'none' (default 0.25)")
    referral.add_argument("--conditions", nargs="+", help="only these, by name, such as 'as shipped' 'pixels only'")
    referral.add_argument("--sheet", type=int, default=24, help="pictures on each sheet of answers beside the truth; 0 draws none")
    tools = tasks.add_parser("tools", help="is the right tool called, with the right arguments, and only when it is needed")
    common(tools)
    words = "the HOI-QA test files, scored strictly or as published"
    hoi_qa.add_arguments(tasks.add_parser("hoi-qa", help=words, description=hoi_qa.__doc__))
    words = "where will each hand go, for the goal that is asked about"
    trajectory.add_arguments(tasks.add_parser("trajectory", help=words, description=trajectory.__doc__))
    words = "when things happen in videos, and dense captions, of LITA's files"
    temporal.add_arguments(tasks.add_parser("temporal", help=words, description=temporal.__doc__))
    words = "the pose of hands, beside constant hands and by the official programs"
    hand_pose.add_arguments(tasks.add_parser("hand-pose", help=words, description=hand_pose.__doc__))
    words = "bodies of people in a scanned room, beside the mean pose, strictly or as published"
    body.add_arguments(tasks.add_parser("body", help=words, description=body.__doc__))
    compare = tasks.add_parser("compare", help="two runs of the same evaluation, question by question")
    words = "two --out folders of `evaluate referral`, `trajectory`, `hoi-qa` or `body`"
    compare.add_argument("runs", type=Path, nargs=2, metavar="OUT", help=words)
    compare.add_argument("--condition", default="as shipped")
    compare.add_argument("--data", type=Path, required=True, help="the scenes, clips or HOI-QA files both runs were made with")
    return main_parser


def main(arguments: Sequence[str]) -> int:
    """Runs the task that is named first; returns the exit status."""
    options = parser().parse_args(arguments)
    verbs = {
        "referral": referral, "trajectory": trajectory.main, "temporal": temporal.main, "hand-pose": hand_pose.main, "body": body.main,
        "tools": tool_use, "hoi-qa": hoi_qa.main, "compare": compare_runs,
    }  # fmt: skip
    return verbs[options.task](options)


def referral(options: argparse.Namespace) -> int:
    """Asks the referral questions under every condition, and tells the answers beside the baselines."""
    from vlm.evaluation import run
    from vlm.evaluation.asking import Asker
    from vlm.evaluation.baselines import Prior
    from vlm.evaluation.referral import CONDITIONS, picture_sizes, read_questions, select

    conditions = chosen(options.conditions, CONDITIONS)
    asked = select(read_questions(options.data, options.seed, options.limit), options.questions, options.none_share, options.seed)
    with records.single_writer(options.out):
        records.claim(options.out, _settings(options, asked))
        model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
        if "detection" not in processor.pose_encoders:
            conditions = [condition for condition in conditions if condition.pose == "off"]
        tokens = detections(options.data, asked, needed=any(condition.pose != "off" for condition in conditions))
        ask = Asker(model, processor)
        replies = {
            condition.name: run.ask_all(asked, condition, ask, tokens, out=options.out, batch_size=options.batch_size, seed=options.seed)
            for condition in conditions
        }
        prior = None
        if options.train:
            known = read_questions(options.train, options.seed, limit=4000)
            sizes = picture_sizes(known)
            prior = Prior((question.sample, sizes[question.id]) for question in known)
        about = _about(options, asked)
        text = run.report(asked, replies | run.baseline_replies(asked, tokens, prior), options.out, about)
        if options.sheet:
            from vlm.evaluation.sheet import write_sheets

            for path in write_sheets(asked, replies, options.out, count=options.sheet, seed=options.seed):
                print(f"pictures: {path}")
    return finish(options, "referral", text)


def detections(folder: Path, asked: Sequence[Any], needed: bool) -> Callable[[Any], np.ndarray] | None:
    """The detector's (2, 11) tokens of every picture asked about, as a function of the picture's path; None where there is no
    detector and none is `needed`."""
    from data.detections import cached_detections
    from pose_tools.tool_protocol import BackendMissing
    from vlm.evaluation.referral import image_of

    root = folder.resolve()
    try:
        cached = cached_detections(root, sorted({Path(image_of(q)) for q in asked}))
    except BackendMissing as error:
        if needed:
            raise
        logger.warning("no baseline from the detector: %s", error)
        return None
    return lambda picture: cached[os.path.relpath(picture, root)]


def tool_use(options: argparse.Namespace) -> int:
    """Asks what needs a tool and what needs none, with and without the detections."""
    from data.detections import cached_detections
    from data.groups import open_groups
    from data.tool_dialogues import OFFER
    from pose_tools.tool import schemas
    from vlm.evaluation import tool_use as task
    from vlm.evaluation.asking import Asker

    root = options.data.resolve()
    cached = cached_detections(root, open_groups("tool_dialogues", root, limit=options.limit).pictures())  # the dialogues are made of them
    asked = task.select(task.read_tool_questions(root, options.seed, options.limit), options.questions, options.seed)
    with records.single_writer(options.out):
        records.claim(options.out, _settings(options, asked))
        model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
        ask = Asker(model, processor, tools=schemas(OFFER))
        tokens = (lambda picture: cached[os.path.relpath(picture, root)]) if "detection" in processor.pose_encoders else None
        table = task.evaluate(asked, ask, processor.dialect, out=options.out, tokens=tokens, batch_size=options.batch_size)
        text = "\n".join([*_about(options, asked), "", table])
        write_text(options.out / "table.md", text)
    return finish(options, "tools", text)


def compare_runs(options: argparse.Namespace) -> int:
    """Prints, per row, how much better the second run is than the first, with a paired clustered interval."""
    if all(_task(folder) == "trajectory" for folder in options.runs):
        return trajectory.compare(options)
    if all((folder / hoi_qa.PREDICTIONS).is_file() for folder in options.runs):
        return hoi_qa.compare(options)
    if all(_task(folder) == "body" for folder in options.runs):
        return body.compare(options)
    from pose_tools.metrics import paired_difference
    from vlm.evaluation.referral import ROWS, read_questions
    from vlm.evaluation.run import predictions_path
    from vlm.evaluation.scoring import Reply

    sides = []
    for folder in options.runs:
        path = predictions_path(folder, options.condition)
        found = {name: Reply.from_record(record) for name, record in records.records_by_id(path).items()}
        if not found:
            raise CommandError(f"{path}: no predictions; run `evaluate referral --out {folder}` first, or correct --condition")
        sides.append(found)
    asked = [q for q in read_questions(options.data) if q.id in sides[0] and q.id in sides[1]]
    rows = []
    for row in ROWS:
        members = [q for q in asked if q.row == row]
        if not members:
            continue
        first, second = ([float(q.score(found[q.id]).right) for q in members] for found in sides)
        d = paired_difference(second, first, [q.cluster for q in members])
        difference = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.3g}"
        rows.append([row, len(members), f"{np.mean(first):.3f}", f"{np.mean(second):.3f}", difference])
    print(tables.markdown_table(["question", "n", str(options.runs[0]), str(options.runs[1]), "difference"], rows))
    return 0


def _task(folder: Path) -> str | None:
    """The evaluation that a folder of records belongs to; None where it does not say."""
    settings = folder / "settings.json"
    return json.loads(settings.read_text(encoding="utf-8")).get("task") if settings.is_file() else None


def _settings(options: argparse.Namespace, asked: Sequence[Any]) -> dict[str, Any]:
    """What records are a function of."""
    return {
        "task": options.task,
        "questions": questions_digest(asked),
        "data": files_digest([options.data / "manifest.json"]),
        "model": model_digest(options.model),
        **({"load_in": options.load_in} if options.load_in else {}),
    }


def _about(options: argparse.Namespace, asked: Sequence[Any]) -> list[str]:
    pictures = len({question.cluster for question in asked})
    return [
        f"`scripts/evaluate.py {options.task} --data {options.data} --questions {options.questions} --seed {options.seed}`: {len(asked)} "
        f"questions about {pictures} pictures (data manifest {files_digest([options.data / 'manifest.json'])}, "
        f"model {model_digest(options.model)}), greedy decoding.",
    ]
