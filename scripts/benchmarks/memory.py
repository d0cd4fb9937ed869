"""What an answer of a model takes of a device's memory, measured, beside what scripts/plan_memory.py says of it.

    python scripts/bench.py memory --model models/vlm4hoi --load-in 8bit --device cuda

One picture, one sequence of exactly --tokens tokens, greedy. On a GPU the figure is what the whole device is short of when the answer is
there: weights, cache, activations, the allocator's reserve and CUDA's context, so nothing else may run on it. On a CPU it is the growth
of this process's resident peak.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.benchmarks.timing import peak_megabytes, restart_peak
from vlm import HandVLMConfig
from vlm.adapters import base_of, is_adapter
from vlm.commands.loading import add_load_in, load_model
from vlm.quantization import GIB, plan

QUESTION = "where is the left hand?"


def main(arguments: list[str]) -> None:
    """Prints the plan's table, then what was measured."""
    parser = argparse.ArgumentParser(prog="bench.py memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    add_load_in(parser)
    parser.add_argument("--tokens", type=int, default=1000, help="the whole context, picture and answer included (default 1000)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    before = 0.0 if options.device.startswith("cuda") else restart_peak() / 1024
    model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
    length = answer(model, processor, options.tokens)
    config = HandVLMConfig.from_pretrained(base_of(options.model) if is_adapter(options.model) else options.model)
    made = plan(config, load_in=options.load_in, tokens=length, width=model.lm_head.weight.element_size())
    print(made.table())
    print(f"measured on {options.device}, {length} tokens: {_used(options.device) - before:.2f} GiB")


def answer(model: Any, processor: Any, tokens: int) -> int:
    """Lets a model go on about a grey picture until prompt and answer have `tokens` tokens; how many there are. Raises ValueError where
    the prompt alone is longer."""
    picture = np.full((processor.image_size, processor.image_size, 3), 127, np.uint8)
    batch = processor([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}])
    more = tokens - batch["input_ids"].shape[1]
    if more < 1:
        raise ValueError(f"--tokens {tokens}: the picture and the question alone take {batch['input_ids'].shape[1]}; give more")
    with torch.inference_mode():
        output = model.generate(**batch.to(model.device), do_sample=False, max_new_tokens=more, min_new_tokens=more)
    return output.sequences.shape[1]


def _used(device: str) -> float:
    """GiB of the whole GPU that are not free, or this process's resident peak."""
    if not device.startswith("cuda"):
        return peak_megabytes() / 1024
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / GIB
