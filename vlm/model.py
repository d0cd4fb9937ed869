"""HandVLM: encode → fuse by mask → language model → heads. Parameter names follow LLaVA in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from vlm.adapters import is_adapter, load_adapter
from vlm.config import HandVLMConfig
from vlm.connectors import ImageProjector, PoseProjector
from vlm.loss import token_losses
from vlm.vision import patch_features, reduce_tokens, set_output_norm_eps


class CheckpointError(ValueError):
    """A checkpoint does not fit its model; the message lists the tensors."""


@dataclass
class HandVLMOutput(ModelOutput):
    """`loss` scalar; `losses` its named parts; `logits` (B, L, vocabulary), None while training on labels;
    `trajectories` None without a head."""

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
                name: PoseProjector(spec["dim"], spec["n_tokens"], width, tuple(spec.get("box_columns", ())))
                for name, spec in config.pose_encoders.items()
            }
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, image_seq_length, D)."""
        config = self.config
        pixel_values = pixel_values.to(next(self.vision_tower.parameters()).dtype)
        features = patch_features(self.vision_tower, pixel_values, config.vision_feature_layer, config.vision_feature_select_strategy)
        features = reduce_tokens(features, config.token_reducer)
        return self.multi_modal_projector(features.to(self.multi_modal_projector.linear_1.weight.dtype))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, pose_tokens: dict[str, Tensor] | None = None) -> Tensor:
        """Token embeddings with the pictures' and the specialists' tokens written into their slots.

        input_ids (B, L); pixel_values (N, 3, S, S), pictures in the order of their slots; pose_tokens name → (M, n_tokens, dim),
        likewise. Returns (B, L, D). Raises ValueError when slots and features do not agree.
        """
        embeds = self.get_input_embeddings()(input_ids)
        pose_tokens = pose_tokens or {}
        unknown = sorted(set(pose_tokens) - set(self.pose_projectors))
        if unknown:
            raise ValueError(f"the batch has pose tokens of {unknown} but this model knows {sorted(self.pose_projectors)} only")
        if pixel_values is not None:
            tokens = self.image_tokens(pixel_values)
            embeds = fill_slots(embeds, input_ids == self.config.image_token_id, tokens, "image")
        for name, features in pose_tokens.items():
            mask = input_ids == self.config.pose_token_ids[name]
            embeds = fill_slots(embeds, mask, self.pose_projectors[name](features.to(embeds.device)), f"pose ({name})")
        return embeds + self._unused(pixel_values, pose_tokens) if self.training else embeds

    def _unused(self, pixel_values: Tensor | None, pose_tokens: dict[str, Tensor]) -> Tensor | float:
        """Zero, made by every part that this batch does not need.

        Data-parallel engines wait for each parameter on each rank, and the batches of some ranks may have no picture or pose.
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
        return zero

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, pose_tokens)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)


def fill_slots(embeds: Tensor, mask: Tensor, tokens: Tensor, what: str) -> Tensor:
    """Writes `tokens` (N, n, D), in order, where `mask` (B, L) is true in `embeds` (B, L, D)."""
    slots, given = int(mask.sum()), tokens.shape[0] * tokens.shape[1]
    if slots != given:
        raise ValueError(
            f"the prompts have {slots} {what} slots but {tokens.shape[0]} inputs of {tokens.shape[1]} tokens each "
            f"came with them ({given}); "
            "build the batch with this model's own processor, and do not cut prompts to a length"
        )
    return embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds))


def as_attention_bias(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A (B, 1, L, L) bool mask in the form the attention implementation takes: bool for sdpa, an additive one for eager."""
    if mask.dtype != torch.bool or implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    raise ValueError(f"packed rows need attn_implementation 'sdpa' or 'eager', got {implementation!r}; or train without packing")


class HandVLM(HandVLMPreTrainedModel, GenerationMixin):
    """A vision-language model that sees hands. Build with `vlm.build`, load with `from_pretrained`, ask through `vlm.agent.Agent`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: HandVLMConfig) -> None:
        super().__init__(config)
        self.model = HandVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
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
        problems = [
            f"{title}: {', '.join(sorted(str(key) for key in keys)[:10])}{' …' if len(keys) > 10 else ''} ({len(keys)})"
            for title, keys in (
                ("missing", info["missing_keys"]),
                ("unexpected", info["unexpected_keys"]),
                ("mis-shaped", info["mismatched_keys"]),
            )
            if keys
        ]
        if problems:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: the weights do not fit the config. "
                + "; ".join(problems)
                + ". Copy the folder again, or convert it with scripts/convert.py."
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
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int = 0,
        views: Any = None,
        **kwargs: Any,
    ) -> HandVLMOutput:
        """Shapes as in `HandVLMModel.embed`; `views` of a processor's batch are not used here; `attention_mask`
        (B, L), or (B, 1, L, L) bool for packed rows (see `vlm.packing`).

        `labels` (B, L), -100 where nothing is learnt; the loss is the sum over supervised tokens divided by `num_items_in_batch`
        (the count over the whole global batch) or, without it, by their number here. While training, logits are made for
        supervised positions only and not returned.
        """
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = as_attention_bias(attention_mask, self.config.text_config._attn_implementation, self.dtype)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pose_tokens=pose_tokens,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        result = HandVLMOutput(past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        if labels is not None:
            target = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]  # the state at i predicts the token at i + 1
            supervised = target != -100
            losses = token_losses(self.lm_head(hidden[supervised]), target[supervised], self.config)
            count = num_items_in_batch if num_items_in_batch is not None else max(int(supervised.sum()), 1)
            result.loss = losses.sum() / count
            result.losses = {"tokens": result.loss.detach()}
        if labels is None or not self.training:
            kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
            result.logits = self.lm_head(kept)
        return result

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        views: Any = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`; pictures and poses are encoded once, before beams or samples are expanded.

        Returns an output with `sequences` (prompt and answer, left-padded prompts).
        """
        kwargs.setdefault("return_dict_in_generate", True)
        if kwargs.get("use_cache", True):
            kwargs["inputs_embeds"] = self.model.embed(input_ids, pixel_values, pose_tokens)
        else:  # without a cache the whole prompt is computed again at every step
            kwargs.update(pixel_values=pixel_values, pose_tokens=pose_tokens)
        return super().generate(input_ids=input_ids, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.pop("pose_tokens", None)
        return inputs
