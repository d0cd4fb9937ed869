"""What `evaluate body` opens and writes beside its tables: bodies, stages, translations, published files of results."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.ego_body import EgoBody
from pose_tools.body_models import Smpl, load_smpl
from pose_tools.egohmr.checkpoint import load_stage1, load_stage2
from pose_tools.egohmr.collision import BodyField, CapsuleField, packaged_field
from pose_tools.egohmr.evaluate import Sums, read_results
from pose_tools.egohmr.folder import InputSizes, open_stage1, open_stage2, read_sizes, read_statistics
from pose_tools.egohmr.guidance import Guidance
from pose_tools.files import atomic_path
from vlm.commands.console import CommandError
from vlm.evaluation.body import Asked, Bodies, Predictor, Scoring
from vlm.evaluation.body_predict import Sampling, scene_of, stage1_predictor, stage2_predictor

Genders = dict[str, Smpl]


def bodies_of(folder: Path | None) -> Genders:
    """The bodies by gender, of SMPL's files or the stand-in for all."""
    genders: tuple[Literal["neutral", "male", "female"], ...] = ("neutral", "male", "female")
    if folder is None:
        return dict.fromkeys(genders, load_smpl())
    try:
        return {gender: load_smpl(folder, gender) for gender in genders}
    except (ValueError, OSError) as error:
        raise CommandError(f"--smpl: {error}") from error


def open_split(options: argparse.Namespace, bodies: Genders, stage: Literal[1, 2], split: Any = None) -> EgoBody:
    """A split of the data with the points of a stage, where they were preprocessed."""
    sizes = sizes_of(options)
    scenes = options.scenes if stage == 1 else options.scenes_2
    return EgoBody(options.data, split or options.split, smpl=bodies, scenes=scenes, stage=stage, side=sizes.side, points=sizes.points)


def sizes_of(options: argparse.Namespace) -> InputSizes:
    if options.results:
        return InputSizes()
    try:
        return read_sizes(options.model) if options.model.is_dir() else InputSizes(options.side or InputSizes.side)
    except ValueError as error:
        raise CommandError(f"--model: {error}") from error


def scoring_of(options: argparse.Namespace, bodies: Genders) -> Mapping[str, Scoring]:
    """How the answers of each row are scored."""
    smpl, field = bodies["neutral"], field_of(options, bodies["neutral"])
    made = {}
    for row, stage in (("stage 1", 1), ("stage 2", 2), ("results", 2)):
        scenes = options.scenes if stage == 1 else options.scenes_2
        points = open_split(options, bodies, 1 if stage == 1 else 2).scene_points if scenes else None
        made[row] = Scoring(smpl, field, options.protocol, False if stage == 1 else None, options.seen, points)
    return made


def field_of(options: argparse.Namespace, smpl: Smpl) -> BodyField:
    if options.guidance in ("none", "capsules"):
        return CapsuleField(smpl)
    if options.smpl is None:
        raise CommandError(f"--guidance {options.guidance} needs --smpl: that package poses SMPL's own files")
    try:
        return packaged_field(options.guidance, options.smpl)
    except (ImportError, ValueError, OSError) as error:
        raise CommandError(f"--guidance {options.guidance}: {error}") from error


def stage1_maker(options: argparse.Namespace, data: EgoBody, bodies: Genders) -> Callable[[], Predictor]:
    def make() -> Predictor:
        with _named("--model"):
            stage = open_stage1(options.model, bodies) if options.model.is_dir() else load_stage1(options.model, bodies)
        return stage1_predictor(stage, data, scene_of(data, 1, sizes_of(options)), options.samples, options.seed)

    return make


def stage2_maker(options: argparse.Namespace, bodies: Genders, transl: Mapping[int, np.ndarray]) -> Callable[[], Predictor]:
    data = open_split(options, bodies, 2)

    def make() -> Predictor:
        with _named("--model"):
            if options.model.is_dir():
                stage = open_stage2(options.model, bodies)
            elif options.statistics is None:
                raise CommandError("a checkpoint of stage 2 needs --statistics: preprocess_stats.npz, which comes beside it")
            else:
                stage = load_stage2(options.model, bodies, *read_statistics(options.statistics))
        guidance = None
        if options.guidance != "none":
            guidance = Guidance(field_of(options, bodies["neutral"]), options.guidance_weight, repeats=options.guidance_repeats)
        how = Sampling(options.samples, options.seed, options.sampler, options.steps, not options.no_fuse, guidance,
                       options.published_guidance)  # fmt: skip
        return stage2_predictor(stage, data, scene_of(data, 2, sizes_of(options), transl), transl, how)

    return make


def translations(options: argparse.Namespace, asked: Asked, first: Sequence[Bodies] | None) -> dict[int, np.ndarray]:
    """Where stage 2 is told that the person is, {number: (3,)}."""
    if first is not None:
        return {number: bodies.transl[0] for number, bodies in zip(asked.numbers, first, strict=True)}
    if options.transl == "truth":
        return {number: asked.data.rows["transl_pv"][number] for number in asked.numbers}
    with _named("--transl"):
        return dict(zip(asked.numbers, _of_split(read_results(options.transl), "pred_cam_full_list", asked)[asked.numbers], strict=True))


def read_published(options: argparse.Namespace, asked: Asked) -> tuple[dict[str, list[Bodies]], dict[str, Sums]]:
    """The answers of a published file of results, and the collisions and contacts that it records, if any."""
    with _named("--results"):
        found = read_results(options.results)
        if "pred_betas_list" not in found:
            raise CommandError(f"{options.results} holds stage 1's translations only; give it as --transl beside --results of stage 2")
        if "pred_cam_full_list" in found and options.transl is None:
            transl = _of_split(found, "pred_cam_full_list", asked)
        elif options.transl is None:
            raise CommandError(f"{options.results} has no pred_cam_full_list: give stage 1's results.pkl, or 'truth', as --transl")
        else:
            transl = np.stack(list(translations(options, Asked(asked.data, list(range(len(asked.data)))), None).values()))
        betas, orient, pose = (_of_split(found, f"pred_{name}_list", asked) for name in ("betas", "global_orient", "body_pose"))
    _check_order(found, asked, options.results)
    rotations = np.concatenate([orient, pose], 2)
    if not np.isfinite(rotations).all() or not np.isfinite(betas).all():
        raise CommandError(f"{options.results}: it holds numbers that are not finite")
    answers = [Bodies(rotations[n], betas[n], np.repeat(transl[n][None], len(betas[n]), 0)) for n in asked.numbers]
    recorded = {}
    for name, ours in (("collision_ratio_list", "collision"), ("contact_ratio_list", "contact")):
        if name in found and found[name].size:
            values = _of_split(found, name, asked).reshape(len(asked.data), -1)[asked.numbers].astype(float)
            recorded[ours] = Sums(values.mean(1), np.ones(len(values)))
    return {"results": answers}, recorded


def write_transl(path: Path, asked: Asked, first: Sequence[Bodies]) -> None:
    """Stage 1's translations as published: pred_cam_full_list (n, 3) float32. Raises CommandError unless every picture was asked about."""
    _all_asked(asked, "--save-transl")
    _dump(path, {"pred_cam_full_list": np.stack([bodies.transl[0] for bodies in first]).astype(np.float32)})


def write_results(options: argparse.Namespace, asked: Asked, second: Sequence[Bodies]) -> Path:
    """Stage 2's answers under the published names, without collisions and contacts; scored again by `--results`."""
    _all_asked(asked, "--save-results")
    pose = np.stack([bodies.pose for bodies in second]).astype(np.float32)
    content = {
        "pred_betas_list": np.stack([bodies.betas for bodies in second]).astype(np.float32), "pred_global_orient_list": pose[:, :, :1],
        "pred_body_pose_list": pose[:, :, 1:], "pred_cam_full_list": np.stack([bodies.transl[0] for bodies in second]).astype(np.float32),
        "gt_cam_full_list": asked.data.rows["transl_pv"].astype(np.float32),
    }  # fmt: skip
    path = options.out / f"results_seed_{options.seed}.pkl"
    _dump(path, content)
    return path


def _dump(path: Path, content: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps({name: np.ascontiguousarray(value) for name, value in content.items()}, protocol=2))


def _all_asked(asked: Asked, option: str) -> None:
    if len(asked.numbers) != len(asked.data):
        raise CommandError(f"{option} wants all {len(asked.data)} pictures, {len(asked.numbers)} were asked about; leave --limit out")


def _of_split(found: Mapping[str, np.ndarray], name: str, asked: Asked) -> np.ndarray:
    value, count = found[name], len(asked.data)
    if len(value) != count:
        raise CommandError(f"{name} has {len(value)} rows for the {count} pictures of split {asked.data.split}: results of another split?")
    return np.asarray(value, np.float32)


def _check_order(found: Mapping[str, np.ndarray], asked: Asked, path: Path) -> None:
    """The file's true translations, where it has them, say whether its rows are this split's pictures."""
    if "gt_cam_full_list" not in found:
        return
    miss = np.linalg.norm(_of_split(found, "gt_cam_full_list", asked) - asked.data.rows["transl_pv"], axis=-1)
    if miss.max() > 0.01:
        row = int(miss.argmax())
        raise CommandError(f"{path}: row {row} was scored against a translation {miss[row]:.2f} m from this picture's: another order?")


class _named:
    """Turns what a file is refused for into an error of the option that named it."""

    def __init__(self, option: str) -> None:
        self.option = option

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, FileNotFoundError)) and not isinstance(error, CommandError):
            raise CommandError(f"{self.option}: {error}") from error
