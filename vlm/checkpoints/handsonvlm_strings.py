"""The strings that HandsOnVLM, LITA and the LLaVA family before them were trained on.

They are part of the checkpoints' interface (HandsOnVLM, github.com/Kami-code/HandsOnVLM-release; the forms are those of
Vicuna v1.1 and LLaVA v0, Apache-2.0), not wordings of ours.
"""

VICUNA_V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_V1_USER, VICUNA_V1_ASSISTANT = "USER: ", " ASSISTANT:"

LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
LLAVA_V0_USER, LLAVA_V0_ASSISTANT, LLAVA_V0_END = "Human: ", "Assistant:", "###"

IMAGE_AFTER = "\n"


def llava_v0_answer(decoded: str) -> str:
    """What a decoded text is without the words that end an answer, as the LLaVA family reads it."""
    return decoded.strip().removesuffix(LLAVA_V0_END).strip()
