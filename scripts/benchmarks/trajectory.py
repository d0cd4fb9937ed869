"""Future hand paths of a clip: ours against the published way; goals ≥ 40 × less time, 8 clips ≥ 1.3 ×, 20 futures ≤ 1.5 × one.

The published way encodes 100 frames (10 distinct ones, ten times over) and computes the whole prefix anew for every token, as HandsOnVLM's
generation does; here with the same weights, the same noise, and the same answer of 24 tokens, four of them path tokens. Weights are
random, so the answer is prescribed; the points are computed, and must agree. The model is HandsOnVLM's in small: 356 visual tokens, and
about three times as many operations in the tower as in the language model's prefill. Times are CPU times, peak memory is what the process
held at most above its start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.timing import interleave, peak_growth, report
from vlm.checkpoints.handsonvlm import model_config
from vlm.model import HandVLM
from vlm.trajectory import hand_states
from vlm.vision import patch_features, slow_fast

VOCABULARY, FRAMES, TILES, QUESTION, PATH = 600, 10, 10, 44, 4
ANSWER = [*range(30, 49), *[VOCABULARY - 1] * PATH, 49]
"""24 tokens: words, the path, a full stop."""


COMPARISONS = ("published", "batch", "futures")


def main(arguments: list[str]) -> None:
    """Prints the operations, then each comparison."""
    parser = argparse.ArgumentParser(prog="bench.py trajectory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tower-width", type=int, default=128)
    parser.add_argument("--tower-layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--compare", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="some comparisons alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = small_handsonvlm(options.width, options.layers, options.tower_width, options.tower_layers).to(options.device)
    clips = [clip_batch(model, seed) for seed in range(8)]
    place = f"{options.device}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    _operations(model, clips[0])
    if "published" in options.compare:
        _against_published(model, clips[0], options.rounds, place)
    if "batch" in options.compare:
        _batches(model, clips, options.rounds, place)
    if "futures" in options.compare:
        _futures(model, clips[0], options.rounds, place)


def small_handsonvlm(width: int, layers: int, tower_width: int, tower_layers: int) -> HandVLM:
    """A HandsOnVLM with random weights: 224-pixel frames of 256 patches, a path head of the published size."""
    sizes = {
        "hidden_size": width, "intermediate_size": int(2.6875 * width), "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "vocab_size": VOCABULARY,
    }  # fmt: skip
    tower = {
        "hidden_size": tower_width, "intermediate_size": 4 * tower_width, "num_hidden_layers": tower_layers,
        "num_attention_heads": max(tower_width // 64, 1),
    }  # fmt: skip
    return HandVLM(model_config(sizes, tower)).eval()


def clip_batch(model: HandVLM, seed: int) -> dict[str, Tensor]:
    """A question about a clip of 10 frames, as the processor would give it."""
    g = torch.Generator().manual_seed(seed)
    size, tokens = model.config.image_size, FRAMES * TILES + model.config.image_seq_length
    words = torch.randint(3, 500, (1, QUESTION), generator=g)
    slots = torch.full((1, tokens), model.config.image_token_id)
    ids = torch.cat([words[:, :4], slots, words[:, 4:]], 1)
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(FRAMES, 3, size, size, generator=g),
        "media_frames": torch.tensor([FRAMES]), "frame_rows": torch.arange(FRAMES),
    }  # fmt: skip
    return {name: value.to(model.device) for name, value in batch.items()}


def together(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several clips as one batch."""
    batch = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}
    batch["frame_rows"] = torch.arange(FRAMES * len(clips), device=batch["frame_rows"].device)
    return batch


def ours(model: HandVLM, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    """Points (B, S, 2, 4, 2) of the prescribed answer."""
    written = model.generate(
        **batch, noise=noise, num_trajectories=noise.shape[1], max_new_tokens=len(ANSWER),
        logits_processor=[_Prescribed(batch["input_ids"].shape[1])],
    )  # fmt: skip
    return written.trajectories


class _Prescribed:
    """A logits processor that lets the answer's tokens alone be written."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, ANSWER[input_ids.shape[1] - self.prompt]] = 0
        return kept


@torch.no_grad()
def published(model: HandVLM, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    """Points (1, 1, 2, 4, 2) likewise, everything computed again for every token, on 100 frames."""
    ids, points, body = batch["input_ids"], [], model.model
    token, settings = model.config.trajectory_token_id, model.config.trajectory_settings
    for number in ANSWER:
        frames = batch["pixel_values"].repeat(TILES, 1, 1, 1)
        features = patch_features(body.vision_tower, frames, model.config.vision_feature_layer, "default")
        visual = slow_fast(body.multi_modal_projector(features)[None])
        slots = ids == model.config.image_token_id
        embeds = body.get_input_embeddings()(ids.masked_fill(slots, 0)).masked_scatter(slots.unsqueeze(-1), visual)
        if points:
            code = body.trajectory_code(torch.stack(points, 2), None)
            embeds = embeds.masked_scatter((ids == token).unsqueeze(-1), embeds[ids == token] + code)
        states = body.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        model.lm_head(states)  # all positions, to choose the last one's token
        if number == token:
            hands = hand_states(states[:, -1:], settings.hand_layout)
            step = noise[:, 0, :, len(points), None]
            points.append(model.trajectory_head.predict(hands, step, settings.compat)[:, :, 0])
        ids = torch.cat([ids, ids.new_tensor([[number]])], 1)
    return torch.stack(points, 2).unsqueeze(1)


def _noise(model: HandVLM, batch: int, futures: int) -> Tensor:
    shape = (batch, futures, 2, PATH, model.trajectory_head.latent)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(model.device)


@torch.no_grad()
def _operations(model: HandVLM, batch: dict[str, Tensor]) -> None:
    def count(run: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e9

    tower = TILES * count(lambda: model.model.picture_features(batch["pixel_values"]))
    embeds = model.model.embed(**{name: value for name, value in batch.items() if name != "attention_mask"})
    prefill = count(lambda: model.model.language_model(inputs_embeds=embeds))
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.model.vision_tower, model.model.language_model)]
    print(f"tower {millions[0]:.1f} M, language model {millions[1]:.1f} M parameters, prompt of {embeds.shape[1]} tokens;")
    print(f"tower on 100 frames {tower:.0f} GFLOP : prefill {prefill:.0f} GFLOP = {tower / prefill:.1f} : 1")


def _against_published(model: HandVLM, batch: dict[str, Tensor], rounds: int, place: str) -> None:
    noise = _noise(model, 1, 1)
    ways = {"ours": partial(ours, model, batch, noise), "published": partial(published, model, batch, noise)}
    apart = float((ways["ours"]() - ways["published"]()).abs().max())
    memory = {name: _peak(run) for name, run in ways.items()}
    figures = interleave({name: partial(_timed, run) for name, run in ways.items()}, rounds)
    print(report(figures, f"ms a clip, {len(ANSWER)} new tokens, {place}"))
    ratios = [b / a for a, b in zip(*figures.values(), strict=True)]
    times = f"{statistics.median(ratios):.0f} × our time (median of {rounds}, least {min(ratios):.0f} ×)"
    print(f"  published takes {times}; points agree to {apart:.1e}")
    print(f"  peak memory above the start: ours {memory['ours']:.0f} MB, published {memory['published']:.0f} MB")


def _batches(model: HandVLM, clips: list[dict[str, Tensor]], rounds: int, place: str) -> None:
    noise, batch = _noise(model, len(clips), 1), together(clips)

    def singly() -> Tensor:
        return torch.cat([ours(model, clip, noise[row : row + 1]) for row, clip in enumerate(clips)])

    ways = {"singly": singly, "one batch": partial(ours, model, batch, noise)}
    apart = float((ways["singly"]() - ways["one batch"]()).abs().max())
    figures = interleave({name: partial(_timed, run) for name, run in ways.items()}, rounds)
    print(report(figures, f"ms for {len(clips)} clips, {place}"))
    ratios = [a / b for a, b in zip(*figures.values(), strict=True)]
    print(f"  a batch of {len(clips)} has {statistics.median(ratios):.2f} × the throughput; points agree to {apart:.1e}")


def _futures(model: HandVLM, batch: dict[str, Tensor], rounds: int, place: str) -> None:
    noise = _noise(model, 1, 20)
    ways = {"20 futures": partial(ours, model, batch, noise), "one": partial(ours, model, batch, noise[:, :1])}
    apart = float((ways["20 futures"]()[:, :1] - ways["one"]()).abs().max())
    figures = interleave({name: partial(_timed, run) for name, run in ways.items()}, rounds)
    print(report(figures, f"ms a clip, {place}"))
    ratios = [a / b for a, b in zip(*figures.values(), strict=True)]
    print(f"  20 futures take {statistics.median(ratios):.2f} × the time of one; the first agrees to {apart:.1e}")


def _timed(run: Callable[[], Any]) -> float:
    """Milliseconds: of this process on the CPU, by the clock on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)


def _peak(run: Callable[[], Any]) -> float:
    """Megabytes that the process, or the GPU, held at most above what it held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return peak_growth(run)
