"""Counts the words of a text: POST it, with ?top=N for the N most frequent ones."""

from collections import Counter

import spry

PUNCTUATION = ".,;:!?\"'()[]{}<>*-_/`"


def main(request: spry.Request):
    try:
        top = int(request.params.get("top", 10))
        text = request.text()
    except (TypeError, ValueError) as error:
        return spry.Response(f"{error}\n", status=400)

    words = text.split()
    bare = (word.strip(PUNCTUATION).lower() for word in words)
    counts = Counter(word for word in bare if word)
    return {
        "words": len(words),
        "distinct": len(counts),
        "lines": len(text.splitlines()),
        "top": dict(counts.most_common(max(top, 0))),
    }
