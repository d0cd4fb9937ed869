"""Questions per second about HOI-QA frames: a frame's picture and prompt prefix computed once, against the published way; goal ≥ 3 ×.

The published way takes the questions in the files' order, 16 at a time, and reads, encodes and runs through the language model each
one's picture anew. Ours asks a frame's questions together (`vlm.shared_prefix`). Same model, same process, greedy; answers are compared.

Without --model the model is a small one with fresh weights and the published geometry: a picture is 1,024 patches of 14 × 14 pixels,
256 tokens. Fresh weights never end an answer, so every answer is --new-tokens long; a box in Llama-2's pieces is 17 to 21. The
language model is 1/2000 of the published one: there, the picture's share of the time is larger.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.synthetic.hoi_qa_writer import write_hoi_qa
from scripts.benchmarks.timing import interleave, report
from vlm.build import BuildSettings, build
from vlm.commands.hoi_qa import by_frame
from vlm.commands.loading import load_model
from vlm.evaluation.asking import Asker
from vlm.evaluation.hoi_qa import Item, read_items

PUBLISHED_BATCH = 16


def main(arguments: list[str]) -> None:
    """Prints one table per number of questions a frame, and how many answers are the same."""
    parser = argparse.ArgumentParser(prog="bench.py hoi-qa", description=__doc__)
    parser.add_argument("--frames", type=int, default=20, help="frames of the synthetic HOI-QA, made for this")
    parser.add_argument("--per-frame", type=int, nargs="+", default=[4, 8], help="questions asked about a frame (default 4 and 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a trained model folder instead of fresh weights")
    parser.add_argument("--image-size", type=int, default=448, help="of the fresh model")
    parser.add_argument("--new-tokens", type=int, default=20, help="longest answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        list(write_hoi_qa(folder, "test", 0, options.frames))
        items = read_items(folder / "hoiqa_dataset")
        texts = [item.question for item in items]
        model, processor = load_model(options.model) if options.model else fresh_model(texts, options.image_size)
        for count in options.per_frame:
            _compare(model, processor, first_of_frames(items, count), folder, options)


def fresh_model(texts: Sequence[str], image_size: int) -> tuple[Any, Any]:
    """VLM4HOI's parts in small, with random weights: EVA tower, four patches a token, one linear projector, Llama."""
    torch.manual_seed(0)
    llama = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688}
    tower = {
        "model_type": "blip_2_vision_model", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
        "image_size": image_size, "patch_size": 14,
    }  # fmt: skip
    settings = BuildSettings(
        llama, tower, image_size=image_size, view="squash", vision_feature_layer=-1, token_reducer="merge-4", projector_type="linear",
        vocab_size=1500, template="vlm4hoi", dialect="minigpt",
    )  # fmt: skip
    model, processor = build(settings, texts)
    return model.eval(), processor


def first_of_frames(items: Sequence[Item], count: int) -> list[Item]:
    """The first `count` questions of each frame that has so many, in the files' order."""
    there, taken, chosen = Counter(item.image_path for item in items), Counter[str](), []
    for item in items:
        if there[item.image_path] >= count > taken[item.image_path]:
            taken[item.image_path] += 1
            chosen.append(item)
    return chosen


def _compare(model: Any, processor: Any, items: Sequence[Item], folder: Path, options: argparse.Namespace) -> None:
    make = partial(Asker, model, processor, max_new_tokens=options.new_tokens)
    frames = len({item.image_path for item in items})
    answers: dict[str, dict[str, str]] = {}

    def run(name: str, asker: Asker, order: Sequence[Item], batch_size: int, each_its_own: bool) -> float:
        start = time.perf_counter()
        answers[name] = _ask(asker, order, folder, batch_size, each_its_own)
        return len(items) / (time.perf_counter() - start)

    ways = {
        f"prefix shared, {4 * PUBLISHED_BATCH} at a time": (make(share_prefixes=True), by_frame(items), 4 * PUBLISHED_BATCH, False),
        f"prefix shared, {PUBLISHED_BATCH} at a time": (make(share_prefixes=True), by_frame(items), PUBLISHED_BATCH, False),
        f"as published, {PUBLISHED_BATCH} at a time": (make(), items, PUBLISHED_BATCH, True),
    }
    figures = interleave({name: partial(run, name, *way) for name, way in ways.items()}, options.rounds + 1)
    figures = {name: values[1:] for name, values in figures.items()}  # the first one warms up
    place = f"{options.threads} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(report(figures, f"questions/s, {len(items)} about {frames} frames, {place}"))
    *shared, published = answers.values()
    same = [sum(said[item.id] == published[item.id] for item in items) for said in shared]
    print(f"  answers as published: {' and '.join(f'{n} of {len(items)}' for n in same)}")


def _ask(asker: Asker, items: Sequence[Item], folder: Path, batch_size: int, each_its_own: bool) -> dict[str, str]:
    """Answers by item id. With `each_its_own` every question brings its own copy of the picture."""
    said = {}
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        paths = [folder / item.image_path for item in batch]
        pictures: list[Any] = [path.read_bytes() if each_its_own else str(path) for path in paths]
        turns = [
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": item.question}]}
            for picture, item in zip(pictures, batch, strict=True)
        ]
        texts, _ = asker.texts([[turn] for turn in turns])
        said.update((item.id, answer) for item, answer in zip(batch, texts, strict=True))
    return said
