"""Export of a plain variant to transformers' LLaVA, so that vLLM and others serve it from their own environments."""

from __future__ import annotations

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from pose_tools.user_error import UserError
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor

SERVED_TOWERS = ("clip_vision_model", "siglip_vision_model")
TOLERANCE = 1e-4
"""Largest difference of a logit between a model and its export."""


class ExportError(UserError):
    """The model has parts that LLaVA has not; the message lists them."""


def obstacles(model: HandVLM, processor: HandVLMProcessor) -> list[str]:
    """What keeps a model from being a LLaVA, one line each; empty when it is one."""
    config = model.config
    tower = config.vision_config.model_type
    found = {
        f"vision tower {tower!r} (LLaVA is served with {' or '.join(SERVED_TOWERS)})": tower not in SERVED_TOWERS,
        f"token reducer {config.token_reducer!r}": config.token_reducer != "all",
        f"projector {config.projector_type!r} (LLaVA's has two layers)": config.projector_type != "mlp",
        "a LayerNorm before the projector": config.projector_norm,
        "a position code on picture tokens": bool(config.grid_position),
        f"pose encoders {sorted(config.pose_encoders)}": bool(config.pose_encoders),
        "a path head": config.trajectory is not None,
        "clips": config.clip is not None,
        f"view {processor.view!r} (CLIP's image processor does center_crop or squash)": processor.view == "letterbox",
    }
    return [reason for reason, holds in found.items() if holds]


def to_llava(model: HandVLM, processor: HandVLMProcessor) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The same weights as a LlavaForConditionalGeneration, and its processor.

    Raises ExportError, also when logits differ by more than TOLERANCE.
    """
    reasons = obstacles(model, processor)
    if reasons:
        raise ExportError("this model cannot be exported as a LLaVA: " + "; ".join(reasons))
    config = model.config
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=config.image_token_id,
            image_seq_length=config.image_seq_length,
            projector_hidden_act=config.projector_hidden_act,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    ).to(model.dtype)
    llava.load_state_dict(model.state_dict())
    llava.generation_config = model.generation_config
    _check_logits(model, llava.eval())
    return llava, _llava_processor(processor, config.vision_config.patch_size, config.vision_feature_select_strategy)


@torch.no_grad()
def _check_logits(model: HandVLM, llava: LlavaForConditionalGeneration) -> None:
    config = model.config
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, config.image_size, config.image_size, generator=generator).to(model.dtype)
    words = torch.randint(0, min(config.image_token_id, 1000) or 1, (1, 16), generator=generator)
    ids = torch.cat([torch.full((1, config.image_seq_length), config.image_token_id), words], 1)
    was_training = model.training
    model.eval()
    difference = (model(input_ids=ids, pixel_values=picture).logits - llava(input_ids=ids, pixel_values=picture).logits).abs().max().item()
    model.train(was_training)
    if not difference <= TOLERANCE:  # NaN too
        raise ExportError(
            f"the exported model's logits differ by {difference:.2g} (at most {TOLERANCE}); "
            f"this tower's layer {config.vision_feature_layer} means something else in LLaVA"
        )


def _llava_processor(processor: HandVLMProcessor, patch_size: int, select: str) -> LlavaProcessor:
    side = {"height": processor.image_size, "width": processor.image_size}
    cropped = processor.view == "center_crop"
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": processor.image_size} if cropped else side,
        do_center_crop=cropped,
        crop_size=side,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        resample={"bilinear": 2, "bicubic": 3}[processor.interpolation],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=select,
        num_additional_image_tokens=1 if select == "default" else 0,
        image_token=processor.image_token,
        chat_template=processor.chat_template,
    )
