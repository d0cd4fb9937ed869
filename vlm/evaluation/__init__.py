"""Measuring a model: questions with known answers → append-only records → tables with intervals, baselines beside the model.

`records` keeps predictions on disk so that a run may be cut at any moment and go on; `referral` picks the questions and says
what each condition shows the model; `scoring` compares one reply with its truth; `tables` turns scored records into markdown;
`tool_use` counts tool calls; `sheet` draws answers beside the truth for people to look at.
"""
