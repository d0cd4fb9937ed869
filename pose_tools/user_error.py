"""The errors that are a person's to mend."""

from __future__ import annotations


class UserError(ValueError):
    """Its message is meant for the person at the keyboard: what was got, what was expected, how to mend it. Commands print it in one line;
    any other error is a fault of the program, and keeps its traceback."""
