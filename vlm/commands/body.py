"""`evaluate body`: EgoHMR's stages, or a published file of results, on EgoBody or the synthetic rooms, beside the mean pose; resumable."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.console import ASSETS, CommandError
from vlm.commands.evaluating import files_digest, finish
from vlm.evaluation import records

if TYPE_CHECKING:
    from vlm.evaluation.body import Asked, Bodies, Scoring

logger = logging.getLogger(__name__)
DEFAULT_FOLDER = ASSETS / "egohmr_small"


def add_arguments(task: argparse.ArgumentParser) -> None:
    add = task.add_argument
    add("--data", type=Path, required=True, help="EgoBody's root, or what make_synthetic.py rooms writes")
    add("--split", choices=("train", "val", "test"), default="test", help="default test")
    add("--protocol", choices=("strict", "compat"), default="strict", help="strict definitions (default), or the published ones")
    add("--stage", choices=("both", "1", "2"), default="both", help="which stages answer (default both: stage 2 at stage 1's translations)")
    add("--model", type=Path, default=DEFAULT_FOLDER, help="a folder of both stages (default: the shipped one), or a checkpoint")
    add("--statistics", type=Path, help="preprocess_stats.npz, for a checkpoint of stage 2")
    add("--side", type=int, help="pixels of the person's crop, for a checkpoint (default 224)")
    add("--smpl", type=Path, help="the folder of SMPL's files (default: the stand-in body)")
    add("--scenes", type=Path, help="stage 1's preprocessed points (default: cut out while evaluating)")
    add("--scenes-2", type=Path, help="stage 2's preprocessed points, s2-test (default: cut out while evaluating)")
    add("--transl", help="stage 2 alone: stage 1's results.pkl, or 'truth'")
    add("--results", type=Path, help="score this published results….pkl again instead; --transl gives the translations it lacks")
    add("--samples", type=int, default=5, help="bodies per picture (default 5); stage 1's first is its most likely one")
    add("--sampler", default="ddpm", help="stage 2: ddpm (default), ddim5 (ddim10 …) or dpm++")
    add("--steps", type=int, help="of ddpm (default 50) and dpm++ (default 15)")
    add("--no-fuse", action="store_true", help="stage 2: hidden joints look at the picture too")
    add("--guidance", choices=("capsules", "coap", "volumetric-smpl", "none"), default="capsules", help="what keeps bodies off things")
    add("--guidance-weight", type=float, help="strength (default 10; with --published-guidance the published one)")
    add("--guidance-repeats", type=int, default=4, help="gradient steps per prediction (default 4)")
    add("--published-guidance", choices=("coap", "volumetric_smpl"), help="its published scaling instead of ours")
    add("--seen", choices=("labels", "frame"), help="a visible joint: nothing hides it (strict), or it is in the picture (compat)")
    add("--train-split", default="train", help="the split whose labels make the mean pose (default train)")
    add("--out", type=Path, required=True, help="where predictions, tables and pictures go; the same folder again goes on")
    add("--limit", type=int, help="only so many pictures, spread over the split")
    add("--batch-size", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--render", type=int, default=0, metavar="N", help="draw N pictures: input, body in the picture, body in the scan")
    add("--render-samples", action="store_true", help="with --render: all samples, one below the other")
    add("--meshes", choices=("ply", "glb"), help="with --render: the drawn bodies as meshes, too")
    add("--save-transl", action="store_true", help="write stage 1's translations as results.pkl, which stage 2's preprocessing reads")
    add("--save-results", action="store_true", help="write stage 2's answers as results_seed_N.pkl, as published")
    add("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:body -->")


def main(options: argparse.Namespace) -> int:
    _check(options)
    text = _run(options)
    return finish(options, "body", text)


def compare(options: argparse.Namespace) -> int:
    """Two runs measure by measure; of each its last stage."""
    from vlm.evaluation.body_report import compare as compared

    print(compared(*options.runs))
    return 0


def _check(options: argparse.Namespace) -> None:
    for name, least in (("samples", 1), ("batch_size", 1), ("guidance_repeats", 1), ("render", 0)):
        if getattr(options, name) < least:
            raise CommandError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least {least}")
    if options.limit is not None and options.limit < 1:
        raise CommandError(f"--limit is {options.limit}, expected at least 1")
    if options.steps is None:
        options.steps = 15 if options.sampler == "dpm++" else 50
    if options.seen is None:
        options.seen = "labels" if options.protocol == "strict" else "frame"
    if options.stage == "both" and options.model.is_file():
        raise CommandError(f"--model {options.model} is one stage's checkpoint: say which with --stage, or give a folder of both")
    if options.stage == "2" and options.transl is None and not options.results:
        raise CommandError("--stage 2 alone needs --transl: stage 1's results.pkl (evaluate body --stage 1 --save-transl), or 'truth'")
    if options.save_transl and options.stage == "2":
        raise CommandError("--save-transl writes stage 1's translations: use --stage 1 or both")
    if options.save_results and options.stage == "1":
        raise CommandError("--save-results writes stage 2's answers: use --stage 2 or both")
    if options.published_guidance and options.guidance == "none":
        raise CommandError("--published-guidance scales guidance, and --guidance is none")


def _run(options: argparse.Namespace) -> str:
    from vlm.commands import body_opening as opening
    from vlm.evaluation import body, body_report

    bodies = opening.bodies_of(options.smpl)
    asked = body.ask(opening.open_split(options, bodies, 1), options.limit)
    scoring = opening.scoring_of(options, bodies)
    recorded: dict[str, Any] = {}
    if options.results:
        found, recorded = opening.read_published(options, asked)
    else:
        with records.single_writer(options.out):
            records.claim(options.out, _settings(options, asked))
            found = _ask_stages(options, asked, bodies)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    if "stage 1" in found and options.samples > 1:  # the published program scores the most likely body alone
        rows[body_report.MODE] = body.score(asked, [one.first() for one in found["stage 1"]], scoring["stage 1"], "scoring its mode")
    rows |= {name: body.score(asked, answers, scoring[name], f"scoring {name}") for name, answers in found.items()}
    if options.protocol == "compat" and recorded:
        rows["results"] |= recorded
    train = opening.open_split(options, bodies, 1, options.train_split)
    last = scoring[list(found)[-1]]
    constant = body.score(asked, body_report.mean_pose(train, len(asked.numbers)), last, "scoring mean pose", scene=False)
    body_report.save(rows | {"mean pose": constant}, asked, options.out)
    if options.render:
        from vlm.evaluation import body_pictures

        folder = body_pictures.draw(asked, found, last, options.out, options.render, options.render_samples, options.meshes)
        print(f"pictures: {folder}")
    return _report(options, asked, found, rows, constant, last)


def _ask_stages(options: argparse.Namespace, asked: Asked, bodies: Any) -> dict[str, list[Bodies]]:
    """The stages' answers, kept in OUT/stage1.jsonl and OUT/stage2.jsonl."""
    from vlm.commands import body_opening as opening
    from vlm.evaluation import body

    found: dict[str, list[Bodies]] = {}
    if options.stage != "2":
        make = opening.stage1_maker(options, asked.data, bodies)
        found["stage 1"] = body.predict(asked, make, options.out / "stage1.jsonl", options.batch_size, "stage 1")
        if options.save_transl:
            opening.write_transl(options.out / "results.pkl", asked, found["stage 1"])
            print(f"translations: {options.out / 'results.pkl'}")
    if options.stage != "1":
        transl = opening.translations(options, asked, found.get("stage 1"))
        make = opening.stage2_maker(options, bodies, transl)
        found["stage 2"] = body.predict(asked, make, options.out / "stage2.jsonl", options.batch_size, "stage 2")
        if options.save_results:
            print(f"results: {opening.write_results(options, asked, found['stage 2'])}")
    return found


def _report(
    options: argparse.Namespace,
    asked: Asked,
    found: Mapping[str, Sequence[Bodies]],
    rows: Mapping[str, Any],
    constant: Any,
    scoring: Scoring,
) -> str:
    from pose_tools.files import write_text
    from vlm.evaluation import body, body_report

    clusters = asked.clusters
    truth = body.in_scene_of_truth(asked, scoring)
    numbers, lines = body_report.facts(rows, constant, clusters)
    for answers in found.values():
        lines += body_report.sureness(asked, answers)
    lines.append(f"- the annotated bodies themselves: collision {truth['collision'].value:.4f}, contact {truth['contact'].value:.3f}")
    parts = [
        _about(options, asked),
        body_report.table({**rows, "mean pose": constant}, clusters),
        "\n".join(lines),
        body_report.by_place(asked, rows),
    ]
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    write_text(options.out / "table.md", text)
    return text


def _about(options: argparse.Namespace, asked: Asked) -> str:
    named = [f"`scripts/evaluate.py body --data {options.data} --split {options.split}"]
    if options.results:
        named.append(f"--results {options.results}")
    else:
        named.append(f"--model {options.model.name} --stage {options.stage} --samples {options.samples} --seed {options.seed}")
        if options.stage != "1":
            named.append(f"--sampler {options.sampler} --steps {options.steps} --guidance {options.guidance}")
            named += [f"--published-guidance {options.published_guidance}"] if options.published_guidance else []
    named += [f"--limit {options.limit}"] if options.limit else []
    seen = "in the picture and not hidden" if options.seen == "labels" else "in the picture, hidden or not"
    return (
        " ".join(named) + f" --protocol {options.protocol}`: {len(asked.numbers)} pictures in {len(set(asked.clusters))} recordings, "
        f"95 % intervals over recordings. Visible means {seen}; the body is {'the given SMPL' if options.smpl else 'the stand-in'}. "
        "Without more, a score is the mean over samples; “best of n” takes each picture's best."
    )


def _settings(options: argparse.Namespace, asked: Asked) -> dict[str, Any]:
    """What predictions are a function of."""
    model: Path = options.model
    files = [model] if model.is_file() else sorted(p for p in model.glob("*") if p.suffix in (".safetensors", ".npz", ".json"))
    if not files:
        raise CommandError(f"--model {options.model}: no such checkpoint or folder of both stages")
    names = hashlib.sha256("\n".join(asked.data.name(number) for number in asked.numbers).encode()).hexdigest()[:16]
    settings: dict[str, Any] = {
        "task": "body", "pictures": names, "model": files_digest(files), "stage": options.stage, "samples": options.samples,
        "seed": options.seed,
        "smpl": str(options.smpl) if options.smpl else None, "scenes": str(options.scenes) if options.scenes else None,
    }  # fmt: skip
    if options.stage != "1":
        how = ("sampler", "steps", "no_fuse", "guidance", "guidance_weight", "guidance_repeats", "published_guidance", "transl")
        settings |= {name: getattr(options, name) for name in how}
        settings["scenes_2"] = str(options.scenes_2) if options.scenes_2 else None
    return settings
