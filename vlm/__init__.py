"""handvlm: a vision-language model that sees hands."""

from vlm.config import HandVLMConfig
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor

__all__ = ["HandVLM", "HandVLMConfig", "HandVLMProcessor"]
