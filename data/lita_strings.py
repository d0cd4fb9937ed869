"""The questions of LITA's tasks (Huang et al. 2024, LITA: Language Instructed Temporal-Localization Assistant), as its models were trained
with them, HandsOnVLM's among them. They are part of those checkpoints' interface, not wordings of ours."""

DESCRIBE = (
    "Provide a detailed description of the given video.",
    "Describe the provided video in detail.",
    "Summarize the visual content of the video.",
    "Write a informative summary of the video.",
)
WITH_TIMES = (
    "Each sentence should begin with the start and end timestamps.",
    "At the beginning of each sentence, include the start and end timestamps.",
    "Prepend each sentence with its start and end timestamps.",
)
WHEN = (
    'When does "{}" happen in the video?',
    'At what point in the video does "{}" happen?',
    'When is "{}" depicted in the video?',
    'At what time in the video does "{}" take place?',
)
ONLY_TIMES = (
    "Answer the question only using start and end timestamps.",
    "Provide a response using only start and end timestamps.",
    "Convey your answer using start and end timestamps exclusively.",
)
