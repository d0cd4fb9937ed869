"""HandVLMProcessor: conversations → tensors, keeping the View of every picture so that answers find their way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from data.sample import SampleError, validate_messages
from pose_tools.views import View
from vlm.answers import TRAJECTORY_TOKEN, whole_frame
from vlm.config import ClipTokenSettings, HandVLMConfig
from vlm.decoding import decode_text
from vlm.packing import Row, collate, pack
from vlm.pixels import VIEW_RULES, MediumRows, Pixels, read_media
from vlm.templates import READ_ANSWER, STOP_STRINGS, Piece, encode, render
from vlm.vision import MERGED, clip_length

Messages = list[dict[str, Any]]
LONGEST_STOP = 8
"""Tokens that the words at the end of an answer take at most."""
PathArrays = tuple[np.ndarray, np.ndarray]
"""A path's points (2, T, 2) in units of the grid, hands left, right, and which are valid (2, T). A hand that is valid at no step has zeros;
otherwise steps that are not valid keep their points, because published losses (`compat`) count a hand as a whole."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as numbers: token ids and labels, its pictures and clips as rows of `pixels`, its pose features by encoder, and
    the paths of its answers."""

    input_ids: list[int]
    labels: list[int]
    pixels: Pixels
    media: list[MediumRows]
    poses: dict[str, list[np.ndarray]]
    paths: list[PathArrays]

    @property
    def views(self) -> list[View]:
        """The View of each picture, and of each clip's last frame."""
        return [medium.view for medium in self.media]


class HandVLMProcessor(ProcessorMixin):
    """Everything between a conversation and a batch; saved with the weights, so that it cannot drift from them.

    `view`: how pictures reach the square grid of `image_size` pixels: "letterbox", "center_crop" or "squash".
    `image_mean`, `image_std`: per channel, of pixels in [0, 1]. `interpolation`: "bilinear" or "bicubic".
    `image_seq_length`: tokens of a picture. `pose_encoders`: as in HandVLMConfig. `template`: the renderer's name, `dialect`: how
    boxes are written. `pose_token` marks the slots of every encoder `name` as `<name>`. `clip`: as in HandVLMConfig, with "patches", a
    frame's number of them. `trajectory_steps`: points of a path, None for a model without a path head; `trajectory_space`: whether they
    are fractions of the "grid" or of the whole "frame".
    """

    def __init__(
        self,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_size: int = 336,
        image_seq_length: int = 576,
        view: str = "letterbox",
        interpolation: str = "bicubic",
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        image_token: str = "<image>",
        pose_encoders: dict[str, dict[str, Any]] | None = None,
        template: str = "chat",
        dialect: str = "norm1000",
        max_question_characters: int = 4000,
        clip: dict[str, Any] | None = None,
        trajectory_steps: int | None = None,
        trajectory_space: str = "grid",
        **kwargs: Any,
    ) -> None:
        if view not in VIEW_RULES:
            raise ValueError(f"view is {view!r}, expected one of {', '.join(VIEW_RULES)}")
        self.image_size, self.image_seq_length, self.view = image_size, image_seq_length, view
        self.interpolation: Any = interpolation
        self.image_mean, self.image_std, self.image_token = list(image_mean), list(image_std), image_token
        self.pose_encoders, self.template, self.dialect = pose_encoders or {}, template, dialect
        self.max_question_characters = max_question_characters
        if trajectory_space not in ("grid", "frame"):
            raise ValueError(f"trajectory_space is {trajectory_space!r}, expected 'grid' or 'frame'")
        self.clip, self.trajectory_steps, self.trajectory_space = clip, trajectory_steps, trajectory_space
        super().__init__(tokenizer, chat_template=chat_template)

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def pose_token_ids(self) -> dict[str, int]:
        return {name: self.tokenizer.convert_tokens_to_ids(pose_token(name)) for name in self.pose_encoders}

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "pixel_values", "pose_tokens"]
        return (
            names
            + (["media_frames", "frame_rows"] if self.clip else [])
            + (["trajectories", "trajectory_valid"] if self.trajectory_steps else [])
        )

    def __call__(self, messages: Messages | list[Messages], tools: Any = None, for_training: bool = False, **_: Any) -> BatchFeature:
        """One conversation or a list of them → BatchFeature.

        `input_ids`, `attention_mask` (B, L): padded on the left for asking (the prompt ends where the answer starts), on the right for
        training; `labels` (B, L) when training; `pixel_values` (N, 3, S, S) distinct pictures, in the order of their slots, or where there
        are clips or a picture comes again, with `media_frames` and `frame_rows` (see `HandVLMModel.media_tokens`); `pose_tokens`
        {encoder: (M, n_tokens, dim)} in the order of their slots; `trajectories` (M, 2, T, 2) and `trajectory_valid` (M, 2, T) of the paths
        in answers; `views`: per conversation, the View of each of its pictures, and of each clip's last frame.
        """
        conversations: list[Any] = messages if messages and isinstance(messages[0], list) else [messages]
        pixels = Pixels()
        encoded = [self.encode_conversation(conversation, tools, for_training, pixels) for conversation in conversations]
        if for_training:
            batch = collate([pack([(one.input_ids, one.labels)]) for one in encoded], self.pad_token_id)
        else:
            batch = self.pad_left([one.input_ids for one in encoded])
        return BatchFeature(batch | self.media(encoded))

    def pack(self, conversations: Sequence[Messages], tools: Any = None) -> Row:
        """Conversations about the same pictures as one packed row (see `vlm.packing`), with `encoded` holding their media."""
        pixels = Pixels()
        encoded = [self.encode_conversation(conversation, tools, for_training=True, pixels=pixels) for conversation in conversations]
        row = pack([(one.input_ids, one.labels) for one in encoded])
        in_branch = self.image_token_id in (token for token, branch in zip(row["input_ids"], row["branches"]) if branch)
        if in_branch or any(one.media != encoded[0].media for one in encoded):
            raise SampleError("cannot pack: the conversations do not open with the same pictures")
        paths = [path for one in encoded for path in one.paths]
        return row | {"encoded": replace(encoded[0], poses=self._packed_poses(row, encoded), paths=paths)}

    def _packed_poses(self, row: Row, encoded: Sequence[Encoded]) -> dict[str, list[np.ndarray]]:
        """Pose features in the order of a row's slots: the prefix's once, then those that each conversation goes on to bring."""
        prefix = [token for token, branch in zip(row["input_ids"], row["branches"]) if branch == 0]
        poses: dict[str, list[np.ndarray]] = {}
        for name, token in self.pose_token_ids.items():
            shared = prefix.count(token) // self.pose_encoders[name]["n_tokens"]
            found = [one.poses.get(name, []) for one in encoded]
            if any(not np.array_equal(a, b, equal_nan=True) for other in found[1:] for a, b in zip(found[0][:shared], other[:shared])):
                raise SampleError(f"cannot pack: the conversations open with different {name} tokens")
            ordered = found[0][:shared] + [features for each in found for features in each[shared:]]
            if ordered:
                poses[name] = ordered
        return poses

    def collate_packed(self, rows: Sequence[Row]) -> BatchFeature:
        """Packed rows → a training batch with `position_ids` and the block mask."""
        return BatchFeature(collate(rows, self.pad_token_id) | self.media([row["encoded"] for row in rows]))

    def encode_conversation(
        self, messages: Messages, tools: Any = None, for_training: bool = False, pixels: Pixels | None = None
    ) -> Encoded:
        """One conversation → ids, labels and media; pictures that are in `pixels` are not read again."""
        validate_messages(messages)
        self._check_questions(messages)
        parts = [part for message in messages for part in message["content"]]
        pixels = Pixels() if pixels is None else pixels
        media = read_media(parts, pixels, self)
        picture_views = [medium.view for medium in media]
        poses: dict[str, list[np.ndarray]] = {}
        for part in parts:
            if part["type"] == "pose":
                poses.setdefault(part["encoder"], []).append(self._pose_features(part, picture_views))
        paths = [self._path(part, picture_views) for part in parts if part["type"] == "trajectory"]
        pieces = render(
            messages,
            self.template,
            tokenizer=self.tokenizer,
            tools=tools,
            views=picture_views,
            dialect=self.dialect,
            add_generation_prompt=not for_training,
        )
        input_ids, labels = encode(pieces, self.tokenizer, self._media_ids)
        if for_training and all(label == -100 for label in labels):
            raise SampleError(
                "a training conversation without an answer: no token of it would be learnt. Give it an assistant turn with content"
            )
        self._check_path_tokens(input_ids, paths)
        return Encoded(input_ids, labels, pixels, media, poses, paths)

    def decode_answers(self, output: Any, batch: BatchFeature) -> list[str]:
        """The new text of every row of `model.generate(**batch)`."""
        sequences = getattr(output, "sequences", output)
        read = READ_ANSWER.get(self.template, str.strip)
        return [read(decode_text(row, self.tokenizer)) for row in sequences[:, batch["input_ids"].shape[1] :].tolist()]

    def finished(self, output: Any) -> list[bool]:
        """Whether the model ended its answer itself, before the longest length, for every row of `model.generate`'s output."""
        ends, stops = {self.tokenizer.eos_token_id, self.pad_token_id}, STOP_STRINGS.get(self.template, ())
        last = getattr(output, "sequences", output)[:, -LONGEST_STOP:].tolist()
        return [row[-1] in ends or decode_text(row, self.tokenizer).endswith(stops) for row in last]

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    def _check_questions(self, messages: Messages) -> None:
        for message in messages:
            if message["role"] != "user":
                continue
            words = [part["text"] for part in message["content"] if part["type"] == "text"]
            length = sum(map(len, words))
            if length > self.max_question_characters:
                raise SampleError(f"a question of {length} characters; at most {self.max_question_characters} are read. Ask shorter")
            if not any(word.strip() for word in words):
                raise SampleError("an empty question. Ask something, such as 'where is my left hand?'")

    def _check_path_tokens(self, input_ids: list[int], paths: list[PathArrays]) -> None:
        written = input_ids.count(self.tokenizer.convert_tokens_to_ids(TRAJECTORY_TOKEN)) if paths else 0
        if written != sum(points.shape[1] for points, _ in paths):
            raise SampleError(
                f"the answers have {written} {TRAJECTORY_TOKEN} but the points of {len(paths)} paths of {self.trajectory_steps} steps; "
                "give every path as a part of type 'trajectory', and leave the token out of the words"
            )

    def _path(self, part: dict[str, Any], picture_views: list[View]) -> PathArrays:
        """A trajectory part in units of the grid of the clip's last frame, or of that frame itself."""
        points = np.asarray(part["points"], dtype=np.float64)
        valid = np.ones(points.shape[:2], bool) if part.get("valid") is None else np.asarray(part["valid"], dtype=bool)
        if self.trajectory_steps is None:
            raise SampleError("an answer with a trajectory, but this model has no path head; build or extend it with `trajectory`")
        if points.shape[1] != self.trajectory_steps:
            raise SampleError(f"a trajectory of {points.shape[1]} steps, this model writes {self.trajectory_steps}; resample it")
        if not picture_views:
            raise SampleError("a trajectory needs the clip or picture whose pixels it is in, before it in the conversation")
        view = whole_frame(picture_views[-1]) if self.trajectory_space == "frame" else picture_views[-1]
        there = np.expand_dims(valid.any(1), (1, 2)) & np.isfinite(points).all(-1, keepdims=True)
        grid = view.to_grid(np.where(there, points, 0.0)) / view.out
        return np.where(there, grid, 0.0).astype(np.float32), valid

    def _pose_features(self, part: dict[str, Any], picture_views: list[View]) -> np.ndarray:
        """A pose part's tokens as (n_tokens, dim) float32; boxes moved from original pixels to the unit grid, empty slots NaN."""
        name = part["encoder"]
        if name not in self.pose_encoders:
            raise SampleError(f"a pose part of encoder {name!r}; this model reads {sorted(self.pose_encoders) or 'none'}")
        spec = self.pose_encoders[name]
        features = np.full((spec["n_tokens"], spec["dim"]), np.nan, dtype=np.float32)
        if part.get("tokens") is not None:
            tokens = np.asarray(part["tokens"], dtype=np.float32)
            if tokens.ndim != 2 or tokens.shape[1] != spec["dim"] or len(tokens) > spec["n_tokens"]:
                raise SampleError(
                    f"pose tokens of {name!r} have shape {tokens.shape}, expected (at most {spec['n_tokens']}, {spec['dim']})"
                )
            features[: len(tokens)] = tokens
        for column in spec.get("box_columns", ()):
            if not picture_views:
                raise SampleError(f"pose tokens of {name!r} hold boxes, so their conversation needs the picture they were found in")
            features[:, column : column + 4] = picture_views[0].box_to_grid(features[:, column : column + 4]) / self.image_size
        return features

    def _media_ids(self, piece: Piece) -> list[int]:
        part = piece.value
        if self.clip is not None and (part["type"] == "video" or (part["type"] == "image" and ClipTokenSettings.of(self.clip).pictures)):
            frames = len(part["video"]) if part["type"] == "video" else 1
            return [self.image_token_id] * clip_length(frames, self.clip["patches"], self.clip)
        if part["type"] == "image":
            return [self.image_token_id] * self.image_seq_length
        return [self.pose_token_ids[part["encoder"]]] * self.pose_encoders[part["encoder"]]["n_tokens"]

    def pad_left(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, L) of sequences that end together."""
        length = max(map(len, sequences))
        ids = [[self.pad_token_id] * (length - len(s)) + s for s in sequences]
        mask = [[0] * (length - len(s)) + [1] * len(s) for s in sequences]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def media(self, encoded: Sequence[Encoded]) -> dict[str, Any]:
        """What a batch has beside its tokens; see `__call__`."""
        media: dict[str, Any] = {"views": [one.views for one in encoded]}
        offsets: dict[int, int] = {}  # of each Pixels in the batch
        pictures: list[torch.Tensor] = []
        for pixels in (one.pixels for one in encoded):
            if id(pixels) not in offsets:
                offsets[id(pixels)] = len(pictures)
                pictures += pixels.pictures
        if pictures:
            media["pixel_values"] = torch.stack(pictures)
        rows = [offsets[id(one.pixels)] + row for one in encoded for medium in one.media for row in medium.rows]
        frames = [medium.frames for one in encoded for medium in one.media]
        if any(frames) or rows != list(range(len(pictures))):
            media |= {"media_frames": torch.tensor(frames), "frame_rows": torch.tensor(rows)}
        paths = [path for one in encoded for path in one.paths]
        if paths:
            media["trajectories"] = torch.from_numpy(np.stack([points for points, _ in paths]))
            media["trajectory_valid"] = torch.from_numpy(np.stack([valid for _, valid in paths]))
        poses: dict[str, list[np.ndarray]] = {}
        for one in encoded:
            for name, features in one.poses.items():
                poses.setdefault(name, []).extend(features)
        if poses:
            media["pose_tokens"] = {name: torch.from_numpy(np.stack(features)) for name, features in poses.items()}
        return media


def processor_options(config: HandVLMConfig) -> dict[str, Any]:
    """The arguments of HandVLMProcessor that its model's config fixes."""
    trajectory = config.trajectory_settings
    patches = config.image_seq_length * MERGED[config.token_reducer]
    return {
        "image_size": config.image_size,
        "image_seq_length": config.image_seq_length,
        "pose_encoders": config.pose_encoders,
        "clip": None if config.clip is None else {**config.clip, "patches": patches},
        "trajectory_steps": None if trajectory is None else trajectory.steps,
        "trajectory_space": "grid" if trajectory is None else trajectory.space,
    }


def pose_token(encoder: str) -> str:
    """The text of an encoder's slot token."""
    return f"<{encoder}>"
