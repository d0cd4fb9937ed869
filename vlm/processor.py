"""HandVLMProcessor: conversations → tensors, keeping the View of every picture so that answers find their way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from data.sample import SampleError, validate_messages
from pose_tools import views
from pose_tools.image_io import read_image
from vlm.packing import Row, collate, pack
from vlm.templates import Piece, encode, render

VIEW_RULES = {"letterbox": views.letterbox, "center_crop": views.center_crop, "squash": views.squash}
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """One conversation as numbers: token ids and labels, its pictures' pixels (3, S, S) and views, its pose features by encoder."""

    input_ids: list[int]
    labels: list[int]
    pixels: list[torch.Tensor]
    views: list[views.View]
    poses: dict[str, list[np.ndarray]]


class HandVLMProcessor(ProcessorMixin):
    """Everything between a conversation and a batch; saved with the weights, so that it cannot drift from them.

    `view`: how pictures reach the square grid of `image_size` pixels: "letterbox", "center_crop" or "squash".
    `image_mean`, `image_std`: per channel, of pixels in [0, 1]. `interpolation`: "bilinear" or "bicubic".
    `image_seq_length`: tokens of a picture. `pose_encoders`: as in HandVLMConfig. `template`: the renderer's name, `dialect`: how
    boxes are written. `pose_token` marks the slots of every encoder `name` as `<name>`.
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
        **kwargs: Any,
    ) -> None:
        if view not in VIEW_RULES:
            raise ValueError(f"view is {view!r}, expected one of {', '.join(VIEW_RULES)}")
        self.image_size, self.image_seq_length, self.view = image_size, image_seq_length, view
        self.interpolation: Any = interpolation
        self.image_mean, self.image_std, self.image_token = list(image_mean), list(image_std), image_token
        self.pose_encoders, self.template, self.dialect = pose_encoders or {}, template, dialect
        self.max_question_characters = max_question_characters
        super().__init__(tokenizer, chat_template=chat_template)

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def pose_token_ids(self) -> dict[str, int]:
        return {name: self.tokenizer.convert_tokens_to_ids(pose_token(name)) for name in self.pose_encoders}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pose_tokens"]

    def __call__(self, messages: Messages | list[Messages], tools: Any = None, for_training: bool = False, **_: Any) -> BatchFeature:
        """One conversation or a list of them → BatchFeature.

        `input_ids`, `attention_mask` (B, L): padded on the left for asking (the prompt ends where the answer starts), on the right for
        training; `labels` (B, L) when training; `pixel_values` (N, 3, S, S), `pose_tokens` {encoder: (M, n_tokens, dim)} in the order
        of their slots; `views`: per conversation, the View of each of its pictures.
        """
        conversations: list[Any] = messages if messages and isinstance(messages[0], list) else [messages]
        encoded = [self.encode_conversation(conversation, tools, for_training) for conversation in conversations]
        if for_training:
            batch = collate([pack([(one.input_ids, one.labels)]) for one in encoded], self.pad_token_id)
        else:
            batch = self._pad_left([one.input_ids for one in encoded])
        return BatchFeature(batch | self._media(encoded))

    def pack(self, conversations: Sequence[Messages], tools: Any = None) -> Row:
        """Conversations about the same pictures as one packed row (see `vlm.packing`), with `encoded` holding their media."""
        encoded = [self.encode_conversation(conversation, tools, for_training=True, reuse=None) for conversation in conversations[:1]]
        encoded += [
            self.encode_conversation(conversation, tools, for_training=True, reuse=encoded[0]) for conversation in conversations[1:]
        ]
        row = pack([(one.input_ids, one.labels) for one in encoded])
        if self.image_token_id in (token for token, branch in zip(row["input_ids"], row["branches"]) if branch):
            raise SampleError("cannot pack: the conversations do not open with the same pictures")
        return row | {"encoded": replace(encoded[0], poses=self._packed_poses(row, encoded))}

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
        return BatchFeature(collate(rows, self.pad_token_id) | self._media([row["encoded"] for row in rows]))

    def encode_conversation(
        self, messages: Messages, tools: Any = None, for_training: bool = False, reuse: Encoded | None = None
    ) -> Encoded:
        """One conversation → ids, labels and media; `reuse` takes the pictures of an encoded conversation about the same media."""
        validate_messages(messages)
        self._check_questions(messages)
        parts = [part for message in messages for part in message["content"]]
        images = [part for part in parts if part["type"] == "image"]
        if reuse is not None and len(reuse.views) == len(images):
            pixels, picture_views = reuse.pixels, reuse.views
        else:
            pixels, picture_views = self._pictures([part["image"] for part in images])
        poses: dict[str, list[np.ndarray]] = {}
        for part in parts:
            if part["type"] == "pose":
                poses.setdefault(part["encoder"], []).append(self._pose_features(part, picture_views))
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
        return Encoded(input_ids, labels, pixels, picture_views, poses)

    def decode_answers(self, output: Any, batch: BatchFeature) -> list[str]:
        """The new text of every row of `model.generate(**batch)`."""
        sequences = getattr(output, "sequences", output)
        return [text.strip() for text in self.tokenizer.batch_decode(sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)]

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

    def _pictures(self, images: list[Any]) -> tuple[list[torch.Tensor], list[views.View]]:
        pixels, picture_views = [], []
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        fill = [round(255 * value) for value in self.image_mean]  # borders are the mean colour: zero after normalisation
        for image in images:
            array = as_rgb(image)
            view = VIEW_RULES[self.view]((array.shape[1], array.shape[0]), self.image_size)
            grid = view.warp(array, fill=fill, interpolation=self.interpolation)
            pixels.append((torch.from_numpy(np.ascontiguousarray(grid)).permute(2, 0, 1).float() / 255 - mean) / std)
            picture_views.append(view)
        return pixels, picture_views

    def _pose_features(self, part: dict[str, Any], picture_views: list[views.View]) -> np.ndarray:
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
        if part["type"] == "image":
            return [self.image_token_id] * self.image_seq_length
        return [self.pose_token_ids[part["encoder"]]] * self.pose_encoders[part["encoder"]]["n_tokens"]

    def _pad_left(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        length = max(map(len, sequences))
        ids = [[self.pad_token_id] * (length - len(s)) + s for s in sequences]
        mask = [[0] * (length - len(s)) + [1] * len(s) for s in sequences]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def _media(self, encoded: Sequence[Encoded]) -> dict[str, Any]:
        media: dict[str, Any] = {"views": [one.views for one in encoded]}
        pixels = [picture for one in encoded for picture in one.pixels]
        if pixels:
            media["pixel_values"] = torch.stack(pixels)
        poses: dict[str, list[np.ndarray]] = {}
        for one in encoded:
            for name, features in one.poses.items():
                poses.setdefault(name, []).extend(features)
        if poses:
            media["pose_tokens"] = {name: torch.from_numpy(np.stack(features)) for name, features in poses.items()}
        return media


def pose_token(encoder: str) -> str:
    """The text of an encoder's slot token."""
    return f"<{encoder}>"


def as_rgb(image: Any) -> np.ndarray:
    """A path, bytes, PIL picture or RGB uint8 array → RGB uint8 (H, W, 3)."""
    if isinstance(image, (str, Path, bytes)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise SampleError(
            f"a picture must be a path, a PIL picture or an RGB uint8 array (H, W, 3), "
            f"got {type(image).__name__} {array.dtype} {array.shape}"
        )
    return array
