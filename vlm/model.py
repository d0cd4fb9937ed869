"""HandVLM: encode → fuse by mask → language model → heads. Parameter names follow LLaVA in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from vlm.adapters import is_adapter, load_adapter
from vlm.checkpoints.reading import CheckpointError as CheckpointError  # callers may know it from here
from vlm.checkpoints.reading import refuse
from vlm.config import HandVLMConfig, TrajectorySettings
from vlm.connectors import ImageProjector, PoseProjector
from vlm.generation import PathGeneration
from vlm.loss import token_losses
from vlm.packing import as_attention_bias
from vlm.trajectory import HEADS, Head
from vlm.trajectory_code import TrajectoryCode, handsonvlm_points
from vlm.trajectory_decoding import TrajectoryCache
from vlm.trajectory_loss import path_loss
from vlm.trajectory_observed import context_width, observed_hands
from vlm.vision import patch_features, reduce_tokens, set_output_norm_eps, slow_fast_parts

PICTURES_AT_A_TIME = 8
"""Pictures that go through the tower together on a CPU."""


@dataclass
class HandVLMOutput(ModelOutput):
    """`loss` scalar; `losses` its named parts; `logits` (B, L, vocabulary), None while training on labels; `trajectories` (M, 2, T, 2)
    the points of the supervised paths of a batch with labels, in units of the grid, hands left, right; None where there is none."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    trajectories: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class HandVLMPreTrainedModel(PreTrainedModel):
    config_class = HandVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PoseProjector):
            nn.init.normal_(module.absent, std=0.02)


class HandVLMModel(HandVLMPreTrainedModel):
    """Tower, projectors and language model, without the vocabulary head."""

    def __init__(self, config: HandVLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        if config.vision_norm_eps is not None:
            set_output_norm_eps(self.vision_tower, config.vision_norm_eps)
        self.multi_modal_projector = ImageProjector(config)
        width = config.text_config.hidden_size
        self.pose_projectors = nn.ModuleDict(
            {
                name: PoseProjector(spec["dim"], spec["n_tokens"], width, tuple(spec.get("box_columns", ())), spec.get("score_column"))
                for name, spec in config.pose_encoders.items()
            }
        )
        self.language_model = AutoModel.from_config(config.text_config)
        path = config.trajectory_settings
        self.trajectory_code = TrajectoryCode(width, path.position_code) if path and path.position_code else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def picture_features(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, P, C), the tower's patches."""
        config = self.config
        pixel_values = pixel_values.to(next(self.vision_tower.parameters()).dtype)
        # A processor's caches hold what a few pictures need between two layers; a gradient, or a GPU, wants all at once.
        few = pixel_values.device.type == "cpu" and not torch.is_grad_enabled()
        parts = pixel_values.split(PICTURES_AT_A_TIME) if few else (pixel_values,)
        chosen = config.vision_feature_layer, config.vision_feature_select_strategy
        return torch.cat([patch_features(self.vision_tower, part, *chosen) for part in parts])

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, image_seq_length, D)."""
        return self._project(reduce_tokens(self.picture_features(pixel_values), self.config.token_reducer))

    def media_tokens(self, pixel_values: Tensor, media_frames: Tensor, frame_rows: Tensor) -> Tensor:
        """Tokens of pictures and clips in their order, one behind the other: (n, D).

        pixel_values (N, 3, S, S) distinct pictures, each encoded once; media_frames (M,) the frames of each medium, 0 for a picture;
        frame_rows (F,) for each picture and each frame, in order, its row in pixel_values.
        """
        named = int(frame_rows.max()) + 1
        if named != len(pixel_values):
            raise ValueError(
                f"frame_rows names {named} pictures, pixel_values has {len(pixel_values)}; each distinct picture is there once, and equal "
                "frames share a row"
            )
        features, blocks, start = self.picture_features(pixel_values), [], 0
        for frames in media_frames.tolist():
            rows = frame_rows[start : start + max(frames, 1)]
            start += len(rows)
            if frames:
                blocks += self._clip_blocks(features[rows].unsqueeze(0))
            else:
                blocks.append((reduce_tokens(features[rows], self.config.token_reducer), True))
        return self._project_blocks(blocks)[0]

    def _clip_blocks(self, features: Tensor) -> list[tuple[Tensor, bool]]:
        """A clip's patches (B, T, P, C) → its frames' means in time, then each slow frame's patches; the flag marks a grid of places."""
        clip = self.config.clip_settings
        if clip is None:
            raise ValueError("this model reads no clips: build or extend it with `clip` (see HandVLMConfig), or ask about one picture")
        fast, grids = slow_fast_parts(features, **clip.pooling)
        return [(fast, False), *((grids[:, number], True) for number in range(grids.shape[1]))]

    def _project_blocks(self, blocks: list[tuple[Tensor, bool]]) -> Tensor:
        """Features (B, n, C), some of them of a picture's places, → (B, sum of n, D).

        In one call of the projector: under ZeRO-3 every call waits for all processes, whatever their batches hold.
        """
        tokens = self._project(torch.cat([features for features, _ in blocks], 1), grid=False)
        parts = zip(tokens.split([features.shape[1] for features, _ in blocks], 1), blocks, strict=True)
        return torch.cat([self.multi_modal_projector.placed(part) if grid else part for part, (_, grid) in parts], 1)

    def _project(self, features: Tensor, grid: bool = True) -> Tensor:
        return self.multi_modal_projector(features.to(self.multi_modal_projector.linear_1.weight.dtype), grid)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        media_frames: Tensor | None = None,
        frame_rows: Tensor | None = None,
        trajectories: Tensor | None = None,
        trajectory_valid: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings with the pictures', clips', specialists' tokens and known path points written into their slots.

        input_ids (B, L); pixel_values (N, 3, S, S), pictures in the order of their slots, or with `media_frames` and `frame_rows` as in
        `media_tokens`, or clips (M, T, 3, S, S) of T frames each; pose_tokens name → (M, n_tokens, dim), likewise; trajectories
        (M, 2, T, 2) the paths whose tokens are in input_ids, in order, in units of the grid, with trajectory_valid (M, 2, T). Returns
        (B, L, D). Raises ValueError when slots and features do not agree.
        """
        embeds = self._words(input_ids)
        pose_tokens = pose_tokens or {}
        unknown = sorted(set(pose_tokens) - set(self.pose_projectors))
        if unknown:
            raise ValueError(f"the batch has pose tokens of {unknown} but this model knows {sorted(self.pose_projectors)} only")
        if pixel_values is not None:
            if pixel_values.dim() == 5:
                clips, frames = pixel_values.shape[:2]
                media_frames, frame_rows = torch.full((clips,), frames), torch.arange(clips * frames)
                pixel_values = pixel_values.flatten(0, 1)
            if media_frames is None or frame_rows is None:
                tokens = self.image_tokens(pixel_values)
            else:
                tokens = self.media_tokens(pixel_values, media_frames, frame_rows)
            embeds = fill_slots(embeds, input_ids == self.config.image_token_id, tokens, "image")
        for name, features in pose_tokens.items():
            mask = input_ids == self.config.pose_token_ids[name]
            embeds = fill_slots(embeds, mask, self.pose_projectors[name](features.to(embeds.device)), f"pose ({name})")
        if self.trajectory_code is not None and trajectories is not None:
            if trajectory_valid is not None and self.config.trajectory_settings.compat:
                trajectories = handsonvlm_points(trajectories, trajectory_valid)
            code = self.trajectory_code(trajectories.to(embeds.device), trajectory_valid)
            mask = input_ids == self.config.trajectory_token_id
            embeds = embeds + fill_slots(torch.zeros_like(embeds), mask, code, "path")
        return embeds + self._unused(pixel_values, pose_tokens, trajectories) if self.training else embeds

    def _words(self, input_ids: Tensor) -> Tensor:
        rows = self.config.text_config.vocab_size
        if self.config.image_token_id >= rows:  # a slot's id without a row
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
        if input_ids.shape[1] > 1:  # what is fed while decoding is the model's own; and a GPU says nothing of use about a row too many
            least, most = (int(bound) for bound in input_ids.aminmax())
            if least < 0 or most >= rows:
                raise ValueError(
                    f"the prompts have token ids from {least} to {most}, this model has rows 0 to {rows - 1}: they are another "
                    "tokenizer's; build the batch with this model's own processor"
                )
        return self.get_input_embeddings()(input_ids)

    def _unused(self, pixel_values: Tensor | None, pose_tokens: dict[str, Tensor], trajectories: Tensor | None) -> Tensor | float:
        """Zero, made by every part that this batch does not need.

        Data-parallel engines wait for each parameter on each rank, and the batches of some ranks may have no picture, pose or path.
        """
        weight = self.multi_modal_projector.linear_1.weight
        zero: Tensor | float = 0.0
        if pixel_values is None:
            side = self.config.image_size
            zero = zero + 0.0 * self.image_tokens(torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device)).sum()
        for name, projector in self.pose_projectors.items():
            if name not in pose_tokens:
                spec = self.config.pose_encoders[name]
                zero = zero + 0.0 * projector(torch.zeros(1, spec["n_tokens"], spec["dim"], dtype=weight.dtype, device=weight.device)).sum()
        if self.trajectory_code is not None and trajectories is None:
            zero = zero + 0.0 * self.trajectory_code(torch.zeros(1, 2, 1, 2, device=weight.device), None).sum()
        return zero

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        media_frames: Tensor | None = None,
        frame_rows: Tensor | None = None,
        trajectories: Tensor | None = None,
        trajectory_valid: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed(input_ids, pixel_values, pose_tokens, media_frames, frame_rows, trajectories, trajectory_valid)
            cache = kwargs.get("past_key_values")
            if isinstance(cache, TrajectoryCache) and input_ids.shape[1] == 1:
                points = cache.read(input_ids[:, 0])
                if points is not None and self.trajectory_code is not None:
                    chosen = (input_ids == self.config.trajectory_token_id).unsqueeze(-1)
                    inputs_embeds = inputs_embeds + chosen * self.trajectory_code(points, None).to(inputs_embeds)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)


def fill_slots(embeds: Tensor, mask: Tensor, tokens: Tensor, what: str) -> Tensor:
    """Writes `tokens` (…, D), in order, where `mask` (B, L) is true in `embeds` (B, L, D)."""
    slots, given = int(mask.sum()), tokens.shape[:-1].numel()
    if slots != given:
        inputs = f"{tokens.shape[0]} inputs of {tokens.shape[1]} tokens each" if tokens.dim() == 3 else f"inputs of {given} tokens together"
        raise ValueError(
            f"the prompts have {slots} {what} slots but {inputs} came with them ({given}); "
            "build the batch with this model's own processor, and do not cut prompts to a length"
        )
    return embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds))


def _path_head(config: Any, settings: TrajectorySettings) -> Head:
    """The head that `settings` describe: it reads a hand's half of a state and, if it is told, where that hand was.

    Raises ValueError for a head or an observed pose encoder that does not exist.
    """
    observed = settings.observed
    if settings.head not in HEADS:
        raise ValueError(f"trajectory: head is {settings.head!r}, expected one of {', '.join(HEADS)}")
    if observed is not None and observed not in config.pose_encoders:
        raise ValueError(f"trajectory: observed is {observed!r}, but the pose encoders are {', '.join(config.pose_encoders) or 'none'}")
    past = context_width(config.pose_encoders[observed]["n_tokens"] // 2, settings.observed_code) if observed else 0
    return HEADS[settings.head](config.text_config.hidden_size // 2 + past, **settings.options)


class HandVLM(HandVLMPreTrainedModel, PathGeneration, GenerationMixin):
    """A vision-language model that sees hands. Build with `vlm.build`, load with `from_pretrained`, ask through `vlm.agent.Agent`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: HandVLMConfig) -> None:
        super().__init__(config)
        self.model = HandVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        settings = config.trajectory_settings
        self.trajectory_head = None if settings is None else _path_head(config, settings)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but a tensor that is missing, left over or mis-shaped is an error, never a random weight.

        An adapter folder (see `vlm.adapters`) gives its base with the updates merged in.
        """
        if is_adapter(pretrained_model_name_or_path):
            adapted = load_adapter(cls, pretrained_model_name_or_path, **kwargs)
            return (adapted, {}) if output_loading_info else adapted
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model._weight_conversions = []  # under ZeRO-3 transformers notes renamings for its own models, and would save ours by them
        problems = {"missing": "missing_keys", "unexpected": "unexpected_keys", "mis-shaped": "mismatched_keys"}
        refuse(
            {title: [*map(str, info[keys])] for title, keys in problems.items()},
            f"{pretrained_model_name_or_path}: the weights do not fit the config",
            "Copy the folder again, or convert it with scripts/convert.py.",
        )
        return (model, info) if output_loading_info else model

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        media_frames: Tensor | None = None,
        frame_rows: Tensor | None = None,
        trajectories: Tensor | None = None,
        trajectory_valid: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_hand_steps: Tensor | int | None = None,
        num_micro_batches: int = 1,
        noise: Tensor | None = None,
        fed_back: Tensor | None = None,
        logits_to_keep: int = 0,
        views: Any = None,
        **kwargs: Any,
    ) -> HandVLMOutput:
        """Shapes as in `HandVLMModel.embed`; `views` of a processor's batch are not used here; `attention_mask`
        (B, L), or (B, 1, L, L) bool for packed rows (see `vlm.packing`).

        `labels` (B, L), -100 where nothing is learnt; the loss is the sum over supervised tokens divided by `num_items_in_batch`
        (the count over the whole global batch) or, without it, by their number here; a path's loss is divided by `num_hand_steps`
        likewise, or as published (`compat`) its sum here by `num_micro_batches`. `noise` is that of the path head's training loss;
        `fed_back` (M, 2, T, 2) is what the language model is given back in place of the true points. While training, logits are made
        for supervised positions only and not returned.
        """
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = as_attention_bias(attention_mask, self.config.text_config._attn_implementation, self.dtype)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pose_tokens=pose_tokens,
            media_frames=media_frames,
            frame_rows=frame_rows,
            trajectories=trajectories if fed_back is None else fed_back,
            trajectory_valid=trajectory_valid,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(past_key_values, TrajectoryCache):
            past_key_values.follow(hidden[:, -1])
        result = HandVLMOutput(past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        if labels is not None:
            result.loss = self._token_loss(hidden, labels, num_items_in_batch)
            result.losses = {"tokens": result.loss.detach()}
            if self.trajectory_head is not None:
                observed = None if input_ids is None else observed_hands(input_ids, pose_tokens, self.config)
                path = path_loss(
                    self, hidden, input_ids, labels, trajectories, trajectory_valid,
                    noise=noise, count=num_hand_steps, observed=observed, micro_batches=num_micro_batches,
                )  # fmt: skip
                result.trajectories = path.pop("points", None)
                result.loss = result.loss + path["total"]
                result.losses |= {f"path_{name}": value.detach() for name, value in path.items()}
        if labels is None or not self.training:
            kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
            result.logits = self.lm_head(kept)
        return result

    def _token_loss(self, hidden: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """Sum over the supervised tokens divided by `count`, without it by their number here; states (B, L, D), labels (B, L)."""
        target = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]  # the state at i predicts the token at i + 1
        supervised = target != -100
        losses = token_losses(self.lm_head(hidden[supervised]), target[supervised], self.config)
        return losses.sum() / (max(int(supervised.sum()), 1) if count is None else count)
