#!/usr/bin/env python
"""Builds an index of hands for the tool `find_similar_hands`: SHARDS → one file of vectors, thumbnails and poses.

    python scripts/build_hand_index.py cache/hand_images/train --count 1000 --out demos/assets/simhand_small/index.safetensors
    python scripts/build_hand_index.py shards --encoder resnet50_simhand.pth --out my_hands.safetensors      (of extract_hands.py)
    HANDVLM_HAND_INDEX=my_hands.safetensors HANDVLM_HAND_ENCODER=resnet50_simhand.pth ...                      uses it

Hands are drawn by the seed, as evenly from all videos as they last; poses are told where the shards have 3-D labels. With `--judge` other
labelled shards (of other videos) say what the found hands are worth: the most similar one beside a random one of the index, and what the
tool's words (where four of five agree) are right in beside the most frequent word.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from data.hand_shards import HandShards, ShardError
from pose_tools.image_io import ImageError
from pose_tools.interruption import status_of
from pose_tools.metrics import mpjpe, pa_mpjpe
from pose_tools.simhand.encoder import CheckpointError
from pose_tools.simhand.hand_embedding import HandEmbeddingError, HandEncoder, load_hand_encoder
from pose_tools.simhand.hand_index import HandIndex, HandIndexError, evened_directions
from pose_tools.similar_hands_tool import pose_words, similar_hands, vote
from pose_tools.tool_protocol import BackendMissing

BATCH = 256


def choose(shards: HandShards, count: int | None, least: float, seed: int) -> np.ndarray:
    """Sorted rows: `count` of the hands with at least that confidence, a first from every video, then a second …; all if None."""
    fit = np.flatnonzero(shards.confidence >= least)
    order = np.random.default_rng(seed).permutation(fit)
    videos = shards.video_numbers[order]
    turn = np.empty(len(order), np.int64)
    by_video = np.argsort(videos, kind="stable")
    starts = np.flatnonzero(np.diff(videos[by_video], prepend=-1))
    turn[by_video] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return np.sort(order[np.argsort(turn, kind="stable")][:count])


def build(
    shards: HandShards, rows: np.ndarray, encoder: HandEncoder, *, thumbnail: int, quality: int, source: str, licence: str
) -> HandIndex:
    """The index of those rows of `shards`."""
    vectors, jpegs = [], []
    with tqdm(total=len(rows), unit="hand", desc="index") as bar:
        for start in range(0, len(rows), BATCH):
            crops = [shards.image(int(row)) for row in rows[start : start + BATCH]]
            vectors.append(encoder.embed(crops))
            jpegs += [encode_thumbnail(crop, thumbnail, quality) for crop in crops]
            bar.update(len(crops))
    joints = shards.joints_3d
    poses = np.full((len(rows), 21, 3), np.nan, np.float32) if joints is None else joints[rows]
    names = [tuple(column[rows].tolist()) for column in (shards.hand_ids, shards.video_ids)]
    raw = np.concatenate(vectors)
    centre, directions = evened_directions(raw)
    index = HandIndex(raw, centre, directions, poses, tuple(jpegs), names[0], names[1], encoder.fingerprint, source, licence)
    return replace(index, vectors=index.project(raw))


def encode_thumbnail(crop: np.ndarray, size: int, quality: int) -> bytes:
    """A square crop as a JPEG of `size` pixels."""
    small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if size < len(crop) else cv2.INTER_CUBIC)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def judge(index: HandIndex, encoder: HandEncoder, shards: HandShards, rows: np.ndarray, seed: int) -> str:
    """A table for the card."""
    joints = shards.joints_3d
    if joints is None or not np.isfinite(joints[rows]).all() or not np.isfinite(index.joints_3d).all():
        raise HandIndexError(f"{shards.folder}: an index is judged by 3-D joints, which it and the hands to judge it by must have")
    truth, queries = joints[rows], encoder.embed([shards.image(int(row)) for row in rows])
    guess = np.random.default_rng(seed).integers(len(index), size=len(rows))
    found = index.joints_3d[index.search(queries, 1)[0][:, 0]], index.joints_3d[guess]
    lines = [f"{len(rows)} hands of {len(set(shards.video_ids[rows]))} videos.", "", "| | most similar | random |", "|---|---|---|"]
    for name, errors in (("PA-MPJPE, mm", [pa_mpjpe(one, truth) for one in found]),
                         ("MPJPE from the wrist, mm", [mpjpe(one, truth, root=0) for one in found])):  # fmt: skip
        lines.append(f"| {name} | {errors[0].mean() * 1000:.2f} | {errors[1].mean() * 1000:.2f} |")
    words = [pose_words(one, "right") or {} for one in truth]
    told = [vote(similar_hands(index, query, 5, "right")) for query in queries]
    lines += ["", "| word | told | right where told | most frequent word there |", "|---|---|---|---|"]
    for part in words[0]:
        frequent = Counter((pose_words(one, "right") or {})[part] for one in index.joints_3d).most_common(1)[0][0]
        there = [(answer[part], word[part]) for answer, word in zip(told, words, strict=True) if part in answer]
        right, constant = (float(np.mean(hits)) if hits else float("nan") for hits in
                           ([answer == word for answer, word in there], [frequent == word for _, word in there]))  # fmt: skip
        lines.append(f"| {part} | {len(there) / len(words):.2f} | {right:.3f} | {constant:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of scripts/extract_hands.py or make_synthetic.py hand-images")
    parser.add_argument("--out", type=Path, required=True, help="the index, .safetensors")
    parser.add_argument("--encoder", type=Path, help="checkpoint, or folder with encoder.safetensors and config.json (default: shipped)")
    parser.add_argument("--count", type=int, help="so many hands (default: all)")
    parser.add_argument("--least", type=float, default=0.6, help="confidence below which a hand is left out")
    parser.add_argument("--thumbnail", type=int, default=72, help="pixels of a thumbnail's side")
    parser.add_argument("--quality", type=int, default=80, help="of the thumbnails' JPEG")
    parser.add_argument("--source", help="what is in it, for people (default: the folder's name)")
    parser.add_argument("--licence", default="that of the pictures", help="of the thumbnails")
    parser.add_argument("--judge", type=Path, help="labelled shards to judge the index by")
    parser.add_argument("--judges", type=int, default=1000, help="so many of their hands")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if (options.count is not None and options.count < 1) or not 16 <= options.thumbnail <= 512 or not 1 <= options.quality <= 95:
        parser.error("expected --count of at least 1, --thumbnail 16 to 512 and --quality 1 to 95")
    try:
        shards, encoder = HandShards(options.shards), load_hand_encoder(options.encoder)
        rows = choose(shards, options.count, options.least, options.seed)
        if len(rows) == 0:
            raise HandIndexError(f"{options.shards}: none of {len(shards)} hands is as sure as {options.least}: lower --least")
        index = build(
            shards, rows, encoder, thumbnail=options.thumbnail, quality=options.quality,
            source=options.source or options.shards.resolve().name, licence=options.licence,
        )  # fmt: skip
        index.save(options.out)
        scores = None
        if options.judge:
            others = HandShards(options.judge)
            scores = judge(index, encoder, others, choose(others, options.judges, options.least, options.seed), options.seed)
    except (ShardError, BackendMissing, CheckpointError, HandEmbeddingError, HandIndexError, ImageError, OSError) as error:
        print(f"build_hand_index: {error}", file=sys.stderr)
        return 1
    videos, poses = len(set(index.video_ids)), int(np.isfinite(index.joints_3d).all((1, 2)).sum())
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {len(index)} of {len(shards)} hands, {videos} videos, {poses} with poses, {size:.2f} MB")
    if scores:
        print(f"\n{scores}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
