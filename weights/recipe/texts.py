"""Sentences of everyday English, all made from PyPI and Debian packages and the word lists below.

Four kinds: sentences of chatterbot-corpus, clauses of Debian's fortunes, templates filled from word lists, and strings
of words without sense (frequent ones, and one in ten from hibari's whole lexicon), which teach spelling to sound
without letting the model lean on what usually comes next.
"""

import gzip
import json
import random
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from phones import spell

HELD_OUT = Path(__file__).with_name("heldout.txt")
WORD_LISTS = Path(__file__).with_name("words.json")
MIN_WORDS, MAX_WORDS, MAX_LETTERS = 1, 12, 60


def held_out(name: str = "heldout") -> list[str]:
    """Sentences that nothing here may learn from: 60 of `heldout`, and 60 of `fresh`, which came after everything."""
    return [line.strip() for line in HELD_OUT.with_stem(name).read_text().splitlines() if line.strip()]


def chatterbot_lines() -> list[str]:
    import chatterbot_corpus
    import yaml

    folder = Path(chatterbot_corpus.__file__).parent / "data" / "english"
    lines = []
    for path in sorted(folder.glob("*.yml")):
        for conversation in yaml.safe_load(path.read_text())["conversations"]:
            lines += [str(turn) for turn in conversation]
    return lines


def fortune_lines() -> list[str]:
    """Texts of Debian's fortunes and fortunes-min, fetched with apt-get unless they are installed."""
    folder = Path("/usr/share/games/fortunes")
    with tempfile.TemporaryDirectory() as temp:
        if not folder.is_dir():
            subprocess.run(
                ["apt-get", "download", "fortunes", "fortunes-min"], cwd=temp, check=True, capture_output=True
            )
            for package in Path(temp).glob("*.deb"):
                subprocess.run(["dpkg", "-x", package.name, "."], cwd=temp, check=True)
            folder = Path(temp) / "usr/share/games/fortunes"
        paths = sorted(p for p in folder.iterdir() if p.suffix == "" and p.name not in ("ascii-art", "translate-me"))
        texts = [re.split(r"\n%\n", p.read_text(errors="ignore")) for p in paths]
    return [re.sub(r"\s+", " ", item) for text in texts for item in text]


def clauses(text: str) -> list[str]:
    """Pieces of a text at full stops, colons and brackets, and of long ones at commas."""
    pieces = re.split(r"(?<=[.!?])[\"')]*\s+|[;:()\[\]\"]|--|\s-\s", text)
    return [q for p in pieces for q in (re.split(r",", p) if len(p) > MAX_LETTERS else [p])]


def tidy(piece: str) -> str | None:
    """A sentence as the model is to see it, or None when it does not suit."""
    if re.search(r"[^A-Za-z',.!?;:\- ]", piece) or re.search(r"[A-Z]{2,}|\b[b-hj-zB-HJ-Z]\b", piece):
        return None
    text = spell(piece).strip(" ,.")
    text = re.sub(r"\.\.+|\.(?! |$)", ",", text)
    text = re.sub(r"(^| )'+|'+(?= |$)|[,!?.]+(?=[,.!?])", r"\1", text).strip(" ,")
    text = re.sub(r" +([,.!?])", r"\1", re.sub(r"\s+", " ", text))
    if re.search(r"[.!?] ", text) or not text:
        return None
    text += "" if text[-1] in ".!?" else "."
    words = text.split()
    return text if MIN_WORDS <= len(words) <= MAX_WORDS and len(text) <= MAX_LETTERS else None


def lexicon() -> set[str]:
    from hibari.tts import ASSETS

    with gzip.open(Path(ASSETS) / "lexicon_us_gold.json.gz", "rt") as file:
        return {w for w in json.load(file) if re.fullmatch(r"[a-z']{2,}", w)}


def from_templates(rng: random.Random, n: int) -> list[str]:
    """Grammatical small talk: every {slot} is filled from the list of that name, lists may hold slots again."""
    lists = json.loads(WORD_LISTS.read_text())

    def fill(text: str) -> str:
        while "{" in text:
            text = re.sub(r"\{(\w+)\}", lambda m: rng.choice(lists[m[1]]), text, count=1)
        return re.sub(r"\ba (?=[aeiou](?!ni|se|ne))", "an ", text)

    return [fill(rng.choice(lists["sentence"])) for _ in range(n)]


CONTRACTIONS = (
    (r"\b(do|does|did|is|are|was|were|have|has|had|would|could|should|must|need) not\b", r"\1n't"),
    (r"\bcannot\b|\bcan not\b", "can't"),
    (r"\bwill not\b", "won't"),
    (r"\bi am\b", "i'm"),
    (r"\b(you|we|they) are\b", r"\1're"),
    (r"\b(he|she|it|that|what|where|who|there|here|how) is\b", r"\1's"),
    (r"\b(i|you|he|she|it|we|they) will\b", r"\1'll"),
    (r"\b(i|you|we|they) have (?=\w+(?:ed|en)\b|been|had|made|got)", r"\1've "),
    (r"\b(i|you|he|she|we|they) would\b", r"\1'd"),
    (r"\blet us\b", "let's"),
)
"""What people say for what books write: (pattern, replacement) in a sentence that is `spell`ed."""


def contracted(text: str) -> str:
    for pattern, short in CONTRACTIONS:
        text = re.sub(pattern, short, text)
    return text


def word_strings(rng: random.Random, counts: Counter[str], rare: list[str], n: int) -> list[str]:
    """Strings of 2 to 9 words: common ones more often, but with the square root of their frequency."""
    words = list(counts)
    weights = [counts[w] ** 0.5 for w in words]
    lines = []
    for _ in range(n):
        chosen = rng.choices(words, weights, k=rng.randint(2, 9))
        chosen = [rng.choice(rare) if rng.random() < 0.1 else w for w in chosen]
        if len(chosen) > 4 and rng.random() < 0.3:
            chosen[rng.randint(1, len(chosen) - 3)] += ","
        lines.append(" ".join(chosen) + rng.choice("...?!"))
    return lines


def make(n: int, seed: int = 0) -> list[str]:
    """About n different sentences in random order, held-out ones and their spellings left out."""
    rng = random.Random(seed)
    known = lexicon()
    lists = json.loads(WORD_LISTS.read_text())

    def sayable(text: str) -> bool:
        return all(w in known or w in ("i", "a") or w.rstrip("s") in known for w in re.findall(r"[a-z']+", text))

    natural = [
        t for line in chatterbot_lines() + fortune_lines() for p in clauses(line) if (t := tidy(p)) and sayable(t)
    ]
    natural = sorted(set(natural))
    counts = Counter(w for t in natural for w in re.findall(r"[a-z']+", t) if w in known or w in ("i", "a"))
    counts = Counter(dict(counts.most_common(6000)))
    for words in lists.values():
        for w in {w for item in words for w in re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", item))} & known:
            counts[w] += 40
    for short in (
        "don't",
        "can't",
        "won't",
        "didn't",
        "isn't",
        "i'm",
        "it's",
        "i'll",
        "you're",
        "we're",
        "that's",
        "let's",
    ):
        counts[short] = 400
    rng.shuffle(natural)
    made = from_templates(rng, n) + word_strings(rng, counts, sorted(known), n)
    made = [t for line in made if (t := tidy(line))]
    rng.shuffle(made)
    forbidden = {spell(line).strip(".!?") for line in held_out() + held_out("fresh")}
    forbidden |= {contracted(text) for text in forbidden}
    made = [contracted(t) if rng.random() < 0.6 else t for t in made]
    lines = [t for t in dict.fromkeys(natural + made) if t.strip(".!?") not in forbidden][:n]
    rng.shuffle(lines)
    return lines
