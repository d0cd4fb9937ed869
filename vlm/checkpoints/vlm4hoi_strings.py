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
