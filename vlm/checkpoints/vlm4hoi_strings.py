"""The strings that VLM4HOI was trained on: the conversation form of MiniGPT-v2 around Llama-2-chat.

They are part of the checkpoint's interface (HOI-Ref, github.com/Sid2697/HOI-Ref, and MiniGPT-4, github.com/Vision-CAIR/MiniGPT-4,
both BSD-3-Clause), not wordings of ours.
"""

QUESTION_BEFORE, QUESTION_AFTER = "[INST] ", " [/INST]"
TRAINING_QUESTION_AFTER = "  [/INST]"
"""In training the question has a blank of its own at its end."""

IMAGE_BEFORE, IMAGE_AFTER = "<Img>", "</Img> "

SYSTEM = "<<SYS>>\n{}\n<</SYS>>\n\n"
"""Llama-2-chat's own; VLM4HOI was trained without a system turn."""


def published_answer(decoded: str) -> str:
    """What the published evaluation took of a decoded text for the answer: nothing behind an end, nothing before a question's end."""
    return decoded.split("</s>")[0].replace("<s>", "").split("[/INST]")[-1].strip()
