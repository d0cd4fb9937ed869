"""The questions and answers that HandsOnVLM was trained on and asked with (github.com/Kami-code/HandsOnVLM-release).

They are part of the published checkpoints' interface, not wordings of ours. In questions `{}` is the narration of the action; in answers
first the narration, where there are two, then the path. The conversation's own strings are in `vlm/checkpoints/handsonvlm_strings.py`.
"""

GENERAL_QUESTIONS = (
    "Can you provide the hand trajectory?",
    "What is the recommended hand movement?",
    "What is the future hand trajectory in this video?",
    "What is the predicted hand trajectory given current observations?",
)
ACTION_QUESTIONS = (
    "Where should my hand move to if I want to {}?",
    "Can you provide the hand trajectory for {}?",
    "What is the recommended hand movement for {}?",
)
DO_THIS_QUESTIONS = (
    "What is the recommended hand trajectory for doing this?",
    "What is the predicted hand trajectory to do it?",
    "What is the future hand trajectory for doing it?",
    "Can you provide the hand trajectory for doing this action?",
)
PREDICTION_QUESTIONS = (
    "What kind of action do you think are going to happen in this video?",
    "What is the predicted action in this video?",
    "What is the expected action in this video?",
)
ACTION_ANSWERS = (
    "Certainly! The hand trajectory for {} is as follows: {}.",
    "To {}, the recommended hand trajectory is: {}.",
)
PATH_ANSWERS = (
    "The hand trajectory for this action is as follows: {}.",
    "The possible following hand trajectory may be: {}.",
)
PREDICTION_ANSWERS = (
    "The predicted action in this video is {action}.",
    "The expected action in this video is {action}.",
    "The action that is going to happen in this video is {action}. Because there are {noun} in the video.",
)
