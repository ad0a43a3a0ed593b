"""A reply cut while it arrives: nothing is lost, nothing is torn, and the first words come early."""

import itertools
import random

import pytest
from csm_mlx_app.assistant.clauses import MAX_CHARS, MAX_WORDS, Clauses

REPLIES = [
    "The capital of France is Paris. It has about 2.1 million people, according to the 2023 census.",
    "Sure! Here are three ideas: 1. Bake bread. 2. Read a book.\n\nWhich one do you like?",
    'Well, Dr. Smith went to Washington at 3:14 p.m. on Tuesday, May 4, 2021. He said "hello" to Mr. Jones.',
    "See https://example.com/a,b?c=d. for more, e.g. the docs. **Bold idea:** use `x = [1, 2]` now 😀!",
    "Here you go:\n\n```python\nprint('a, b. c')\n\nprint(1.5)\n```\n\nThat prints it, more or less.",
    "# Heading\n\n- one thing\n- another thing, which is longer\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "It costs $1,000.50, which is a lot. [The docs, really, are long](https://x.org/a.b) say so too.  ",
    "```\ncode first, and long. really\n```\nThen the words come, finally.",
    "Hmm… I don't know\tabout that 🤔. Maybe\r\nyou could ask someone else, like your sister's friend?",
    "\n\n  So, " + "and then we walked along the river for a while, " * 12 + "until it was dark.",
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen.",
    "你好，世界。这是一个测试！ Привет, как дела? Ça va très bien, merci.",
    "",
    "   \n",
    "Yes.",
]


def cut(reply: str, pieces: list[str] | None = None) -> list[tuple[str, str]]:
    clauses = Clauses()
    fed = [clause for piece in pieces or [reply] for clause in clauses.feed(piece)]
    return [(clause.text, clause.spoken) for clause in [*fed, *clauses.finish()]]


@pytest.mark.parametrize("reply", REPLIES)
def test_the_clauses_are_the_reply_however_it_arrives(reply):
    rng = random.Random(reply)
    whole = cut(reply)
    assert "".join(text for text, _ in whole) == reply
    for longest in (1, 3, 8, 40):
        ends = [0]
        while ends[-1] < len(reply):
            ends.append(min(len(reply), ends[-1] + rng.randint(1, longest)))
        assert cut(reply, [reply[a:b] for a, b in itertools.pairwise(ends)]) == whole


def test_random_replies_lose_nothing():
    rng = random.Random(5)
    for _ in range(60):
        parts = [rng.choice(REPLIES)[rng.randrange(20) :][: rng.randrange(1, 90)] for _ in range(4)]
        reply = rng.choice(["", " ", "\n", "\n\n"]).join(parts)
        assert "".join(text for text, _ in cut(reply)) == reply


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        ("The capital of France is Paris. It is big.", "The capital of France is Paris."),
        ("Well, as far as I know, it is Paris.", "Well, as far as I know,"),
        ("Well, yes, it is the city of Paris.", "Well, yes, it is the city of Paris."),
        ("Sure! Here are three ideas: bake bread.", "Sure! Here are three ideas:"),
        ("Yes. No. It is hard to say; ask again.", "Yes. No. It is hard to say;"),
        ("Of course.\n\nThe first thing is water.", "Of course.\n\nThe first thing is water."),
        ("We met with Dr. Smith in London, in May.", "We met with Dr. Smith in London,"),
        ("It was exactly 3.14 or so, I think.", "It was exactly 3.14 or so,"),
        ("That costs you 1,000.50 dollars; a lot.", "That costs you 1,000.50 dollars;"),
        ("The answer is No. 5 in your list; look.", "The answer is No. 5 in your list;"),
        ("Please look at https://a.b/c,d.e?f now, yes.", "Please look at https://a.b/c,d.e?f now,"),
        (
            "Read [the docs, all of them](https://a.b) first, then ask.",
            "Read [the docs, all of them](https://a.b) first,",
        ),
        ("You can call `f(a, b)` here, I think.", "You can call `f(a, b)` here,"),
        ("We ate some, e.g. apples and pears; good.", "We ate some, e.g. apples and pears;"),
        ("I was there on May 4, 2021 with him; yes.", "I was there on May 4, 2021 with him;"),
    ],
)
def test_the_first_clause_ends_where_one_would_breathe(reply, first):
    assert cut(reply)[0][0] == first


def test_without_punctuation_the_first_clause_ends_before_a_word_that_goes_on():
    assert cut("You should take the old road along the river because it is much more quiet.")[0][0] == (
        "You should take the old road along the river"
    )
    words = [f"word{i}" for i in range(14)]
    assert cut(" ".join(words))[0][0] == " ".join(words[:MAX_WORDS])


def test_the_first_clause_comes_with_the_first_character_of_the_next_word():
    clauses = Clauses()
    assert not clauses.feed("As far as I know, ")
    assert [clause.text for clause in clauses.feed("i")] == ["As far as I know,"]
    clauses = Clauses()
    assert not clauses.feed("The number that you want is 3.")
    assert not clauses.feed("14"), "a full stop inside a number"


def test_later_ones_are_whole_sentences_and_long_ones_are_cut():
    assert [
        text for text, _ in cut("It is easy to see. First, you go there, and then, later, you come back. Good.")
    ] == [
        "It is easy to see.",
        " First, you go there, and then, later, you come back.",
        " Good.",
    ]
    long = "Well, this is how it was. " + "and then we walked along the river for a while, " * 30 + "home."
    lengths = [len(text) for text, _ in cut(long)[1:]]
    assert max(lengths) <= MAX_CHARS + 1
    assert min(lengths[:-1]) > MAX_CHARS / 3
    assert all(text.rstrip().endswith((",", ".")) for text, _ in cut(long))


def test_what_is_for_the_eye_is_written_and_not_spoken():
    spoken = dict(cut("Use **this** one please: ok 😀\n\n```python\nx = 1.5\n```\n\nSee https://a.com/b_c?d=1 there."))
    assert spoken["Use **this** one please:"] == "Use this one please."
    assert spoken["\n\n```python\nx = 1.5\n```"] == ""
    assert spoken["\n\nSee https://a.com/b_c?d=1 there."] == "See a dot com there."
    assert not any("😀" in words or "*" in words for words in spoken.values())


def test_after_a_reply_comes_another():
    clauses = Clauses()
    first = [*clauses.feed(REPLIES[0]), *clauses.finish()]
    assert [*clauses.feed(REPLIES[0]), *clauses.finish()] == first
    clauses.feed("Half of a repl")
    clauses.finish()
    assert [*clauses.feed(REPLIES[0]), *clauses.finish()] == first
