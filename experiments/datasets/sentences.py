"""Sentences of a small grammar, each of its 41,472 as likely, so that the entropy is known.

    the old whale followed the divers near the reef.

No file is read. A sentence has one topic of six, a tense, and one number for subject and object.
"""

from typing import Any

import numpy as np

TOPICS = (  # nouns, verbs, places
    ("sailor whale diver pirate", "follow hail rescue", "reef harbour island"),
    ("farmer horse rooster pig", "groom herd calm", "barn field pond"),
    ("cook waiter guest baker", "greet serve thank", "oven table kitchen"),
    ("singer drummer dancer fan", "applaud enjoy join", "stage piano hall"),
    ("keeper striker runner coach", "tackle train block", "goal track stadium"),
    ("teacher pupil clerk tutor", "test mark answer", "desk library school"),
)
ADJECTIVES, PREPOSITIONS = "old young tired proud", "near by past"
ALPHABET = ". abcdefghijklmnopqrstuvwxyz"  # what follows the stop is more stops
LENGTH = 58  # of the longest
BITS = float(np.log2(6 * 2 * 2 * 4 * 4 * 3 * 4 * 3 * 3))  # of a sentence


def sentences(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """So many sentences as indices into `ALPHABET`, uint8 [n, LENGTH], and their topics [n]."""
    rng = np.random.default_rng(seed)
    texts, topics = zip(*(sentence(rng) for _ in range(n)), strict=True)
    codes = [[ALPHABET.index(c) for c in text.ljust(LENGTH, ".")] for text in texts]
    return np.array(codes, np.uint8), np.array(topics)


def sentence(rng: np.random.Generator) -> tuple[str, int]:
    """A sentence and its topic."""
    topic, past, plural = rng.integers(len(TOPICS)), rng.integers(2), rng.integers(2)
    nouns, verbs, places = TOPICS[topic]

    def one(words: str) -> str:
        return str(rng.choice(words.split()))

    subject, object = (one(nouns) + "s" * plural for _ in range(2))
    verb = one(verbs)
    verb += ("d" if verb.endswith("e") else "ed") if past else "" if plural else "s"
    place = f"{one(PREPOSITIONS)} the {one(places)}"
    return f"the {one(ADJECTIVES)} {subject} {verb} the {object} {place}.", int(topic)


def read(codes: Any) -> str:
    """Indices as text, to the first stop."""
    return "".join(ALPHABET[int(c)] for c in codes).split(".")[0] + "."
