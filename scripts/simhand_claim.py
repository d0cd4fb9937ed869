"""SiMHand's claim in miniature: what each kind of pre-training is worth, at equal compute, over several seeds.

    python scripts/simhand_claim.py scripts/configs/simhand_claim.yaml --out runs/simhand_claim [--seeds 3] [--set training.max_steps=70]

Every row and seed is pre-trained by `pretrain_simhand.py`'s code with the config's steps, then judged on `data.judge` hands it never saw:
a linear probe of the frozen encoder with 1, 10 and 100 % of the labels (of twice as many hands it learnt from), and the whole network
fine-tuned with 10 %. One json a run; what is there is not done again, a cut-off training goes on. Ends with the table `table.md`
(PA-MPJPE in millimetres, mean and 95 % interval).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import nn
from tqdm import tqdm

from data.hand_samples import HandDataError
from data.hand_shards import ShardError
from pose_tools.files import write_text
from pose_tools.mano.sample_cache import SampleCacheError
from pose_tools.metrics import pa_mpjpe
from pose_tools.simhand.encoder import Encoder
from pose_tools.simhand.experiments import experiment
from pose_tools.simhand.hand_pool import HandPool
from pose_tools.simhand.pretraining import PretrainingTask, plain_pixels
from pose_tools.simhand.probe import embed, linear_probe, pixels_to_input
from pose_tools.training import TrainingError, train
from scripts.pretrain_simhand import PretrainingSettings, build, read_pools
from vlm import settings as typed
from vlm.commands.console import CommandError, run
from vlm.evaluation.tables import into_card

ROWS = {"random": "random initialisation", "simclr": "SimCLR", "peclr": "PeCLR", "simhand": "SiMHand", "simhand_w": "weighted SiMHand"}
SHARES = (0.01, 0.1, 1.0)
NAMES = [*(f"probe_{round(100 * share)}" for share in SHARES), "finetune_10"]
HEADER = ("| pre-training | seeds | probe, 1 % | probe, 10 % | probe, 100 % | fine-tuned, 10 % |", "|---|---|---|---|---|---|")
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
FINETUNE_STEPS, FINETUNE_BATCH, FINETUNE_RATE = 300, 64, 1e-3
WATCHED = 64
"""Hands of the training loop's own evaluation, which nothing depends on here."""
METRES = 0.05
"""Scale of the fine-tuned network's outputs: about the spread of root-relative joints."""


@dataclass(frozen=True)
class Judged:
    """Plain crops uint8 (N, 3, S, S) and root-relative joints (N, 21, 3) metres: labels to use, and hands to be scored on."""

    pixels: np.ndarray
    joints: np.ndarray
    queries: np.ndarray
    truth: np.ndarray


def judged(learn: HandPool, held_out: HandPool, size: int) -> Judged:
    parts = []
    for pool in (learn, held_out):
        hands = list(tqdm(pool, desc="crops", leave=False, mininterval=2))
        joints = np.stack([hand.joints_3d for hand in hands])
        parts += [np.stack([plain_pixels(hand, size) for hand in hands]), joints - joints[:, :1]]
    return Judged(*parts)


def labelled(count: int, share: float, seed: int) -> np.ndarray:
    """Numbers of the labelled hands; a smaller share is part of a larger one."""
    return np.random.default_rng(seed).permutation(count)[: max(10, round(share * count))]


def probe_error(features: np.ndarray, joints: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    """PA-MPJPE (mm) of the probe whose penalty did best on every fifth label, fitted again on all."""
    aside = np.arange(len(features)) % 5 == 0

    def held(penalty: float) -> float:
        return float(pa_mpjpe(linear_probe(features[~aside], joints[~aside], features[aside], penalty), joints[aside]).mean())

    return float(pa_mpjpe(linear_probe(features, joints, queries, min(PENALTIES, key=held)), truth).mean() * 1000)


def finetuned_error(encoder: Encoder, data: Judged, chosen: np.ndarray, seed: int) -> float:
    """PA-MPJPE (mm) after encoder and a linear layer have learnt the labels of `chosen` together; changes the encoder."""
    torch.manual_seed(seed)
    model = nn.Sequential(encoder, nn.Linear(encoder.width, 63)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=FINETUNE_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, FINETUNE_RATE, total_steps=FINETUNE_STEPS)
    target, rng = torch.from_numpy(data.joints.reshape(-1, 63) / METRES).float(), np.random.default_rng(seed)
    for _ in range(FINETUNE_STEPS):
        rows = rng.choice(chosen, FINETUNE_BATCH)
        loss = (model(pixels_to_input(torch.from_numpy(data.pixels[rows]))) - target[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found = embed(model.eval(), data.queries).reshape(-1, 21, 3) * METRES
    return float(pa_mpjpe(found, data.truth).mean() * 1000)


def score(encoder: Encoder, data: Judged, seed: int) -> dict[str, float]:
    """Errors by name: probe_1, probe_10, probe_100, finetune_10."""
    features, queries = embed(encoder.eval(), data.pixels), embed(encoder, data.queries)
    found = {}
    for share in SHARES:
        rows = labelled(len(features), share, seed)
        found[f"probe_{round(100 * share)}"] = probe_error(features[rows], data.joints[rows], queries, data.truth)
    return found | {"finetune_10": finetuned_error(encoder, data, labelled(len(features), 0.1, seed), seed)}


def pretrained(settings: PretrainingSettings, pools: tuple[HandPool, HandPool, HandPool], partners: np.ndarray, data: Judged) -> Encoder:
    """The encoder after the run `settings` says; "random" trains nothing, but its batch norms have seen pictures."""
    model = build(settings)
    if settings.experiment == "random":
        with torch.no_grad():
            for start in range(0, min(len(data.pixels), 4096), 256):
                model(pixels_to_input(torch.from_numpy(data.pixels[start : start + 256])))
        return model.encoder
    kind, pool = experiment(settings.experiment), pools[0]
    probe, held_out = (part.take(np.arange(min(len(part), WATCHED))) for part in pools[1:])
    task = PretrainingTask(pool, kind, probe, held_out, partners=partners if kind.mined else None, loss=settings.loss,
                           size=settings.image_size, seed=settings.training.seed)  # fmt: skip
    train(model, task, settings.training)
    model.load_state_dict(load_file(Path(settings.training.output) / "best.safetensors"))
    return model.encoder


def compare(settings: PretrainingSettings, out: Path, rows: Sequence[str], seeds: int, card: Path | None = None) -> None:
    # every seed has the same hands, held-out ones too; the last weights count, not the best on hands that judge them
    pools = read_pools(settings.data, 0)
    partners = pools[0].partners(dims=settings.mining.dims, normalise=settings.mining.normalise, rank=settings.mining.rank)
    data = judged(pools[1], pools[2], settings.image_size)
    pools = (pools[0].in_memory(), *pools[1:])
    for seed in range(seeds):
        for row in rows:
            folder = out / f"{row}-{seed}"
            if (folder / "result.json").is_file():
                continue
            steps = settings.training.max_steps
            training = replace(settings.training, output=str(folder), seed=seed, resume=True, best_metric=None, evaluate_every=steps)
            encoder = pretrained(replace(settings, experiment=row, training=training), pools, partners, data)
            found = score(encoder, data, seed)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "result.json", json.dumps({"row": row, "seed": seed, "steps": steps} | found, indent=1))
            print(row, seed, {name: round(value, 2) for name, value in found.items()}, flush=True)
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    text = f"{about(settings, len(pools[0]), data)}\n\n{table(results)}"
    if beside := differences(results):
        text += f"\nEach row less the random initialisation of the same seed and labels (mean ± half the interval):\n\n{beside}"
    write_text(out / "table.md", text)
    print(text)
    if card:
        into_card(card, "simhand_claim", text)


def about(settings: PretrainingSettings, hands: int, data: Judged) -> str:
    training = settings.training
    return (f"PA-MPJPE in millimetres on {len(data.queries):,} hands of videos that no row has seen, mean ± half the 95 % interval over "
            f"seeds (Student's t). Each pre-training: {training.max_steps} steps of {training.batch_size} pairs of {hands:,} hands, "
            f"{settings.image_size} px; labels: {len(data.pixels):,} hands of these.")  # fmt: skip


def table(results: Iterable[dict]) -> str:
    """Markdown: mean ± half the 95 % interval (Student's t over the seeds), PA-MPJPE in millimetres."""
    results = list(results)
    if len(steps := {result["steps"] for result in results}) > 1:
        raise ValueError(f"the runs have {sorted(steps)} steps, a comparison needs equal compute: choose another --out")
    lines = list(HEADER)
    for row, title in ROWS.items():
        mine = [result for result in results if result["row"] == row]
        if mine:
            cells = [interval([result[name] for result in mine]) for name in NAMES]
            lines.append(f"| {title} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(results: Iterable[dict]) -> str:
    """Markdown: each row less the random initialisation, seed by seed (a seed has its labels, which all rows share); "" without one."""
    found = {(result["row"], result["seed"]): result for result in results}
    lines = list(HEADER)
    for row, title in ROWS.items():
        seeds = [seed for name, seed in found if name == row and ("random", seed) in found]
        if row != "random" and seeds:
            cells = [interval([found[row, seed][name] - found["random", seed][name] for seed in seeds]) for name in NAMES]
            lines.append(f"| {title} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > len(HEADER) else ""


def interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{np.mean(values):.2f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {half:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of pretrain_simhand.py")
    parser.add_argument("--out", default="runs/simhand_claim", help="folder of the runs and the table")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="which kinds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--card", type=Path, help="a model card: the table goes between its markers <!-- evaluate:simhand_claim -->")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as training.max_steps=70")
    options = parser.parse_args(arguments)
    try:
        compare(typed.load(PretrainingSettings, options.config, options.set), Path(options.out), options.rows, options.seeds, options.card)
    except (HandDataError, ShardError, SampleCacheError, TrainingError, ValueError) as error:
        raise CommandError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
