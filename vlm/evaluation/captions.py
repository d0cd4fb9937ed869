"""CIDEr-D: how much a caption's phrases are those of reference captions (Vedantam, Zitnick and Parikh 2015, "CIDEr: Consensus-based Image
Description Evaluation", section 6), from the formula.

Words are runs of letters, digits and apostrophes in lower case; the published program splits words by the Penn Treebank's rules, so its
numbers differ in the third digit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST, WIDTH = 4, 6.0
"""Phrases of up to four words; words by which a caption may be longer or shorter before it counts as much less."""
Vector = dict[tuple[str, ...], float]


class Cider:
    """Scores captions against references, 0 to 10; phrases that many of `documents` (the set's reference captions) use count little."""

    def __init__(self, documents: Sequence[str]) -> None:
        if not documents:
            raise ValueError("CIDEr needs the set's reference captions to know which phrases are rare, got none")
        self.documents = len(documents)
        self.frequency = Counter(phrase for text in documents for phrase in _phrases(text))

    def __call__(self, caption: str, references: Sequence[str]) -> float:
        """The mean over `references`; 0 where there are none."""
        return sum(self._pair(caption, reference) for reference in references) / len(references) if references else 0.0

    def _pair(self, caption: str, reference: str) -> float:
        difference = len(words(caption)) - len(words(reference))
        shorter = math.exp(-(difference**2) / (2 * WIDTH**2))
        total = sum(_similarity(a, b) for a, b in zip(self._vectors(caption), self._vectors(reference), strict=True))
        return 10.0 * shorter * total / LONGEST

    def _vectors(self, text: str) -> list[Vector]:
        """Weights of the phrases of one, two … words: how often they stand here, and how rare they are."""
        found: list[Vector] = [{} for _ in range(LONGEST)]
        for phrase, count in _phrases(text).items():
            found[len(phrase) - 1][phrase] = count * (math.log(self.documents) - math.log(max(1, self.frequency[phrase])))
        return found


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _phrases(text: str) -> Counter[tuple[str, ...]]:
    said = words(text)
    return Counter(tuple(said[start : start + n]) for n in range(1, LONGEST + 1) for start in range(len(said) - n + 1))


def _similarity(caption: Vector, reference: Vector) -> float:
    """Cosine, in which a phrase counts no more often than in the reference."""
    norm = math.sqrt(sum(v * v for v in caption.values())) * math.sqrt(sum(v * v for v in reference.values()))
    return sum(min(v, reference.get(p, 0.0)) * reference.get(p, 0.0) for p, v in caption.items()) / norm if norm > 0 else 0.0
