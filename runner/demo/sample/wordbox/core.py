"""The counting."""

import re
from collections import Counter

_WORD = re.compile(r"[a-z']+")


def count_words(text: str) -> Counter[str]:
    """Return each word of the text, in lower case, with how often it stands there."""
    return Counter(_WORD.findall(text.lower()))
