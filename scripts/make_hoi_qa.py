#!/usr/bin/env python
"""Questions and answers in HOI-QA's form from the user's own VISOR and Ego4D annotations, with a validation split by video.

    python scripts/make_hoi_qa.py --visor VISOR/annotations/train/*.json --ego4d fho_main.json --frames HOIQA --out HOIQA/own \\
        --not-videos-of HOIQA/hoiqa_dataset/*-test.json

All eight published types (Q1 … Q8, see data/hoi_qa_generate.py) in our wordings. Frames lie under --frames in the published folders,
EPIC_Kitchens/frames/VIDEO/frame_0000000140.jpg and Ego4D/v2/frames/VIDEO/frame_0000000077.jpg, by these names: VIDEO of Ego4D is the uid of
the full video and the number that of its frame (HOI-QA's own files have the clip's); EPIC's numbers are VISOR's own, or with
--frame-mapping those of the frames that EPIC-KITCHENS releases, which are other numbers for the same pictures. The files train with
`kind: hoi_qa`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.hoi_qa import HOIQAError  # noqa: E402
from data.hoi_qa_files import TYPES, videos_of, write_files  # noqa: E402
from pose_tools.interruption import status_of  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visor", type=Path, nargs="+", default=[], help="VISOR's annotation files, one a video")
    parser.add_argument("--ego4d", type=Path, nargs="+", default=[], help="Ego4D's fho_main.json")
    parser.add_argument("--frames", type=Path, help="leave out, and report, questions about frames that are not under this folder")
    parser.add_argument("--frame-mapping", type=Path, help="VISOR's frame_mapping.json, where EPIC's frames are those that it releases")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the json files")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, metavar="Q", help="only these, of Q1 … Q8")
    parser.add_argument("--val-share", type=float, default=0.05, help="share of videos for validation (default 0.05)")
    parser.add_argument("--not-videos-of", type=Path, nargs="+", default=[], help="leave out the videos of these HOI-QA files")
    parser.add_argument("--seed", type=int, default=0, help="chooses the validation videos (default 0)")
    options = parser.parse_args(arguments)
    if not options.visor and not options.ego4d:
        parser.error("give annotations: --visor, --ego4d or both")
    if not 0 <= options.val_share <= 1:
        parser.error(f"--val-share is {options.val_share}, expected 0 to 1")
    try:
        written = write_files(
            options.out, visor=options.visor, ego4d=options.ego4d, frames=options.frames, mapping=options.frame_mapping,
            types=options.types, val_share=options.val_share, seed=options.seed, leave_out=videos_of(options.not_videos_of),
        )  # fmt: skip
    except (HOIQAError, OSError) as error:
        print(f"make_hoi_qa: {error}", file=sys.stderr)
        return 1
    for name, file in written.items():
        counts = ", ".join(f"{kind} {file.types[kind]:,}" for kind in TYPES if kind in options.types)
        print(f"{options.out / name}: {file.types.total():,} questions, {file.pictures:,} pictures, {len(file.videos)} videos; {counts}")
        if file.missing:
            print(f"  {len(file.missing):,} frames are missing, such as {options.frames / file.missing[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
