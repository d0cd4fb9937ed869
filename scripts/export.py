"""Export a model for other programs.

    python scripts/export.py llava --model runs/mine --out runs/mine-llava

writes a plain LlavaForConditionalGeneration with equal logits (checked before anything is written), which vLLM serves from its
own environment: `vllm serve runs/mine-llava`. A model with parts that LLaVA has not (another projector, pose tokens, merged
tokens) is refused with the list of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm.commands.console import user_errors  # noqa: E402
from vlm.commands.loading import load_model  # noqa: E402
from vlm.export import to_llava  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=["llava"], help="what to write")
    parser.add_argument("--model", required=True, help="a HandVLM folder")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} exists already; name a new folder", file=sys.stderr)
        return 2
    try:
        model, processor = load_model(arguments.model)
        llava, llava_processor = to_llava(model, processor)
    except user_errors() as error:
        print(error, file=sys.stderr)
        return 1
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    llava.save_pretrained(unfinished)
    llava_processor.save_pretrained(unfinished)
    unfinished.rename(arguments.out)
    print(f"wrote {arguments.out}: LlavaForConditionalGeneration, equal logits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
