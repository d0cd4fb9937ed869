"""handvlm: a vision-language model that sees hands."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlm.config import HandVLMConfig
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor

AutoConfig.register(HandVLMConfig.model_type, HandVLMConfig, exist_ok=True)
AutoModel.register(HandVLMConfig, HandVLM, exist_ok=True)
AutoModelForImageTextToText.register(HandVLMConfig, HandVLM, exist_ok=True)
AutoProcessor.register(HandVLMConfig, HandVLMProcessor, exist_ok=True)

__all__ = ["HandVLM", "HandVLMConfig", "HandVLMProcessor"]
