"""Measuring a model: questions with known answers → append-only records → tables with intervals, baselines beside the model.

Shared: `records` keeps predictions on disk, so that a run may be stopped at any moment and go on; `asking` turns conversations into
replies; `scoring` compares one reply with its truth; `tables` turns scored records into markdown; `sheet` draws answers beside the truth.

One task each, driven by the command of the same name in `vlm.commands`:
    referral     `referral` picks the questions and says what each condition shows the model; `baselines`, `run`
    trajectory   `trajectory` likewise; `trajectory_asking`, `_scoring`, `_baselines`, `_mlp`, `_tables`, `_sheet`, `_run`; `path_states`
    temporal     `temporal`, and `captions` for CIDEr-D
    hoi-qa       `hoi_qa` scores strictly, `compat` as published
    tools        `tool_use`
    hand-pose    `hand_pose`
    body         `body`, `body_predict`, `body_report`, `body_pictures`
"""
