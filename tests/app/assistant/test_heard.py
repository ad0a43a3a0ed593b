"""What was heard of a reply, from what was played of it."""

import random

import pytest
from csm_mlx_app.assistant.clauses import Clause
from csm_mlx_app.assistant.heard import CHARS_PER_S, Heard, Ledger
from csm_mlx_app.sound.device import RATE_HZ

from csm_mlx.text import speakable

TEXTS = [
    "The capital of France",
    " is Paris, of course.",
    "\n\n```\nx = 1\n```",
    " It has 2,100,000 people, i.e. 3 % of all.",
    " 😀",
    " **See** https://a.com/b_c_d for more - or ask me again.",
    "\n",
]
REPLY = "".join(TEXTS)


def clause(text: str) -> Clause:
    return Clause(text, speakable(text))


def spoken(ledger: Ledger, texts: list[str], rng: random.Random, close_last: bool = True) -> int:
    """Speaks the clauses in frames at some pace; returns how many samples they had."""
    n_samples = 0
    for text in texts:
        added = clause(text)
        ledger.add(added)
        for _ in range(round(len(added.spoken) / rng.uniform(9, 20) * 12.5)):
            ledger.grow(1920)
            n_samples += 1920
        if text is not texts[-1] or close_last:
            ledger.close()
    return n_samples


@pytest.mark.parametrize("seed", range(8))
def test_heard_is_a_prefix_that_grows_with_what_is_played(seed):
    rng = random.Random(seed)
    ledger = Ledger()
    n_clauses = rng.randint(1, len(TEXTS))
    texts = TEXTS[:n_clauses]
    n_samples = spoken(ledger, texts, rng, close_last=rng.random() < 0.5)
    before = Heard("", 0, 0, complete=False)
    for n_played in sorted(rng.sample(range(n_samples + 5000), 300)):
        heard = ledger.heard(n_played)
        assert REPLY.startswith(heard.text)
        assert len(heard.text) == len(REPLY) or REPLY[len(heard.text)].isspace() or not heard.text, "at a word's border"
        assert len(heard.text) >= len(before.text)
        assert heard.clause >= before.clause
        assert heard.n_samples <= n_played
        assert not before.complete or heard.complete
        before = heard


def test_clauses_that_were_played_are_heard_whole():
    ledger = Ledger()
    starts = []
    for text in TEXTS[:2]:
        starts.append(ledger.n_samples)
        ledger.add(clause(text))
        ledger.grow(48_000)
    ledger.close()
    assert ledger.heard(0) == Heard("", 0, 0, complete=False)
    assert ledger.heard(48_000) == Heard(TEXTS[0], 0, 48_000, complete=False)
    assert ledger.heard(48_001) == Heard(TEXTS[0], 1, 1, complete=False)
    assert ledger.heard(95_999).text == TEXTS[0] + " is Paris, of", "the last word ends with the clause"
    assert ledger.heard(96_000) == Heard(TEXTS[0] + TEXTS[1], 1, 48_000, complete=True)


def test_words_are_heard_by_how_long_they_are_to_say():
    ledger = Ledger()
    ledger.add(clause("We are 1,234,567 people in all."))
    ledger.grow(100_000)
    ledger.close()
    # "one million two hundred thirty-four thousand five hundred sixty-seven" is most of it.
    assert ledger.heard(50_000).text == "We are"
    assert ledger.heard(90_000).text == "We are 1,234,567"


def test_of_a_clause_that_is_being_made_no_more_is_heard_than_could_be():
    ledger = Ledger()
    ledger.add(clause("Twenty characters of words and then some more of the same to come."))
    ledger.grow(2 * RATE_HZ)
    n_chars = len(ledger.heard(2 * RATE_HZ).text)
    assert CHARS_PER_S < n_chars <= 2 * CHARS_PER_S
    ledger.grow(20 * RATE_HZ)  # slower than anybody speaks
    assert not ledger.heard(22 * RATE_HZ).text.endswith("come.")
    assert not ledger.heard(22 * RATE_HZ).complete
    ledger.close()
    assert ledger.heard(22 * RATE_HZ).complete


def test_the_pace_is_learned_from_earlier_clauses():
    def words(samples_per_char: int) -> int:
        ledger = Ledger()
        first, second = (
            clause("This one is spoken at some pace."),
            clause(" And this one goes on at the same pace as before."),
        )
        ledger.add(first)
        ledger.grow(samples_per_char * len(first.spoken))
        ledger.add(second)
        ledger.grow(24_000)
        return len(ledger.heard(samples_per_char * len(first.spoken) + 24_000).text.split())

    assert words(800) > words(2400) + 2


def test_what_makes_no_sound_is_heard_with_what_comes_after_it():
    ledger = Ledger()
    ledger.add(clause("```\ncode\n```"))
    ledger.close()
    assert ledger.heard(0).text == ""
    ledger.add(clause("\nThat was code."))
    ledger.grow(24_000)
    assert ledger.heard(0).text == ""
    assert ledger.heard(20_000).text.startswith("```\ncode\n```")
    ledger.add(clause(" 😀"))
    ledger.close()
    assert ledger.heard(24_000) == Heard("```\ncode\n```\nThat was code. 😀", 1, 24_000, complete=True)
    assert Ledger().heard(10) == Heard("", 0, 0, complete=False)
