"""Counts the words of a text: POST it, with ?top=N for the N most frequent ones."""

from collections import Counter
from urllib.parse import parse_qs

import spry

PUNCTUATION = ".,;:!?\"'()[]{}<>*-_/`"


def main(request: spry.Request):
    query = parse_qs(request.query)
    try:
        top = int(query.get("top", ["10"])[0])
        text = bytes(request.body).decode("utf-8")
    except ValueError as error:
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
