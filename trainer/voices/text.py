"""Sentences for the synthesisers, from our own list of common words and a small grammar.

Sense does not matter, sounds do: every sentence is pronounceable English with its rhythm, and
over many of them every phoneme meets every other.
"""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import numpy as np

WORDS = Path(__file__).parent / "words.txt"
_PATTERNS = (
    "pronoun modal verb determiner adjective noun",
    "determiner adjective noun modal adverb verb preposition determiner noun",
    "opener pronoun modal verb determiner noun joiner pronoun modal verb",
    "number adjective noun verb preposition determiner noun",
    "modal pronoun verb preposition determiner adjective noun adverb",
    "pronoun adverb verb number noun",
    "determiner noun preposition determiner noun modal verb adjective noun",
    "opener number number number number letter letter",
    "adjective noun joiner adjective noun",
    "verb determiner noun preposition letter number adverb",
)


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Word class -> words of the committed list; letters are a class of their own."""
    classes: dict[str, tuple[str, ...]] = {"letter": tuple(string.ascii_uppercase)}
    for line in WORDS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(":")
            classes[name] = tuple(w.replace("-", " ") for w in rest.split())
    return classes


def sentence(rng: np.random.Generator) -> str:
    """One sentence of about 4 to 14 words with its punctuation."""
    classes = words()
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))].split()
    spoken = [str(rng.choice(classes[c])) for c in pattern]
    if len(spoken) > 5 and rng.random() < 0.3:
        at = int(rng.integers(2, len(spoken) - 1))
        spoken[at] += ","
    mark = str(rng.choice([".", ".", ".", "?", "!"]))
    return " ".join(spoken).capitalize() + mark


def paragraph(rng: np.random.Generator, count: int) -> str:
    """`count` sentences."""
    return " ".join(sentence(rng) for _ in range(count))
