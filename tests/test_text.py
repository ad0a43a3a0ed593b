import os
import random
import subprocess
import sys
import time

import pytest

from csm_mlx.text import SentenceStream, sentences, speakable
from csm_mlx.text.split import MAX_CHARS

SPEAKABLE = {
    "numbers": [
        ("1,234.56", "one thousand two hundred and thirty-four point five six"),
        ("I have 3 cats and 0 dogs.", "I have three cats and zero dogs."),
        ("Pi is 3.14. It was 3. Then 4.", "Pi is three point one four. It was three. Then four."),
        ("0.05 or .5", "zero point zero five or point five"),
        ("10,000 and 1,000,000", "ten thousand and one million"),
        ("-5, +5, ±5", "minus five, plus five, plus or minus five"),
        ("a 10-12 hour trip, pages 5–7", "a ten to twelve hour trip, pages five to seven"),
        ("1st, 2nd, 3rd, 21st, 100th", "first, second, third, twenty-first, one hundredth"),
        (
            "1/2, 3/4, 1/3, 9/11, 24/7, 50/50",
            "one half, three quarters, one third, nine over eleven, twenty-four seven, fifty fifty",
        ),
        ("½ cup, 2½ cups", "one half cup, two and one half cups"),
        ("agent 007", "agent zero zero seven"),
        ("1234567890123", "one two three four five six seven eight nine zero one two three"),
        ("We're #1!", "We're number one!"),
        ("version 2.0.1", "version two point zero point one"),
        ("1.5M views, 10k users", "one point five million views, ten thousand users"),
        (
            "mp3, B2B, GPT-4, COVID-19, 3D, 5G, H2O",
            "mp three, B two B, GPT four, COVID nineteen, three D, five G, H two O",
        ),
        ("a 5-star, 10-year-old hotel", "a five-star, ten-year-old hotel"),
        ("3:2", "three to two"),
    ],
    "arithmetic": [
        ("x=3", "x equals three"),
        ("3 - 2 = 1 and 2*3 = 6", "three minus two equals one and two times three equals six"),
        ("3 + 4 < 8", "three plus four less than eight"),
        ("2^10, x², 1e-5", "two to the power of ten, x squared, one times ten to the power of minus five"),
        ("3x faster at 4x4", "three times faster at four by four"),
        ("about ~5, x ≤ 3", "about about five, x at most three"),
    ],
    "money": [
        ("It costs $5.", "It costs five dollars."),
        ("$1, $1.50, $0.99, $5.00", "one dollar, one dollar and fifty cents, ninety-nine cents, five dollars"),
        ("$1,234.56", "one thousand two hundred and thirty-four dollars and fifty-six cents"),
        (
            "$3.5 million, €2bn, $100k",
            "three point five million dollars, two billion euros, one hundred thousand dollars",
        ),
        ("£3.01, 5€, 20 USD, ¥500", "three pounds and one penny, five euros, twenty dollars, five hundred yen"),
        (
            "-$20, $5-10, $5-$10, $9/month",
            "minus twenty dollars, five to ten dollars, five to ten dollars, nine dollars per month",
        ),
    ],
    "units": [
        (
            "50%, 3.5 %, 5-10%, 10%-20%",
            "fifty percent, three point five percent, five to ten percent, ten to twenty percent",
        ),
        ("5km, 1 kg, 10 km/h", "five kilometers, one kilogram, ten kilometers per hour"),
        (
            "20°C, -5°F, 1°, 45°",
            "twenty degrees Celsius, minus five degrees Fahrenheit, one degree, forty-five degrees",
        ),
        ("16GB, 24 kHz, 80 ms, 30s", "sixteen gigabytes, twenty-four kilohertz, eighty milliseconds, thirty seconds"),
        ("5 lbs. and 3 oz. of it", "five pounds and three ounces of it"),
        ("3m², 5ft, 5'10\"", "three square meters, five feet, five foot ten"),
    ],
    "times": [
        ("at 3:45pm", "at three forty-five PM"),
        ("3:45 p.m., 10:05 AM, 3pm", "three forty-five PM, ten oh five AM, three PM"),
        ("15:30, 3:00, 00:00, 14:00", "fifteen thirty, three o'clock, midnight, fourteen hundred"),
        ("They came at 5 p.m. They left at 6 a.m. Monday.", "They came at five PM. They left at six AM Monday."),
        ("open 9am-5pm, 9:00–17:30", "open nine AM to five PM, nine o'clock to seventeen thirty"),
        ("It is 3 p.m.", "It is three PM."),
    ],
    "dates": [
        (
            "in 2024, 1999, 2005, 1905",
            "in twenty twenty-four, nineteen ninety-nine, two thousand and five, nineteen oh-five",
        ),
        ("the 1990s, the 90s, '60s, 2010s", "the nineteen nineties, the nineties, sixties, twenty tens"),
        ("1990-1995, 2024-25", "nineteen ninety to nineteen ninety-five, twenty twenty-four to twenty-five"),
        ("May 5, 2024 or May 5th", "May fifth, twenty twenty-four or May fifth"),
        ("on 5 May 2024, the 5th of May", "on the fifth of May, twenty twenty-four, the fifth of May"),
        ("Jan. 5, Sept. 11", "January fifth, September eleventh"),
        ("2024-05-17", "May seventeenth, twenty twenty-four"),
        ("5/17/2024", "May seventeenth, twenty twenty-four"),
        ("17/5/2024", "May seventeenth, twenty twenty-four"),
        ("1.5.2024", "May first, twenty twenty-four"),
        ("March 2024, May 10-12", "March twenty twenty-four, May tenth to twelfth"),
        ("You may 5 times", "You may five times"),
    ],
    "telephone": [
        ("+44 20", "plus four four, two zero"),
        ("+44 20 7946 0958", "plus four four, two zero, seven nine four six, zero nine five eight"),
        ("(555) 123-4567", "five five five, one two three, four five six seven"),
        ("call 555-1234 now", "call five five five, one two three four now"),
    ],
    "abbreviations": [
        ("Dr. Smith met Mr. and Mrs. Jones.", "Doctor Smith met Mister and Missus Jones."),
        ("Main St. in St. Louis", "Main Street in Saint Louis"),
        ("fruit, e.g. apples, i.e. food, etc.", "fruit, for example apples, that is food, et cetera."),
        ("cats, dogs, etc. They left.", "cats, dogs, et cetera. They left."),
        ("the U.S. Army in the U.S. He left the U.K.", "the U S Army in the U S. He left the U K."),
        ("NASA, the FBI and a Ph.D.", "NASA, the FBI and a P H D."),
        ("No. 5 is alive. No. That is wrong.", "number five is alive. No. That is wrong."),
        ("Fig. 3, p. 5, pp. 5-7, vol. 2", "Figure three, page five, pages five to seven, volume two"),
        ("Apple Inc. v. Epic", "Apple Incorporated versus Epic"),
        ("w/ milk, w/o sugar, and/or tea", "with milk, without sugar, and or tea"),
        ("J. K. Rowling", "J. K. Rowling"),
    ],
    "symbols": [
        ("A/B", "A slash B"),
        ("Tom & Jerry, R&D", "Tom and Jerry, R and D"),
        ("C# and C++", "C sharp and C plus plus"),
        ("#speech by @anna", "hashtag speech by at anna"),
        ("a -> b → c", "a to b to c"),
        ("snake_case_name", "snake case name"),
    ],
    "left alone": [
        ("Louis XIV, World War II, Chapter IV", "Louis XIV, World War II, Chapter IV"),
        ("It's the dogs' bone, y'all can't, rock 'n' roll.", "It's the dogs' bone, y'all can't, rock 'n' roll."),
        ("T-shirt, well-known", "T-shirt, well-known"),
        ("Grüße, Σίσυφος, 世界", "Grüße, Σίσυφος, 世界"),
        ('"Go," she said. "Now!"', '"Go," she said. "Now!"'),
        ("नमस्ते", "नमस्ते"),
    ],
    "punctuation": [
        ("“Curly” ‘quotes’ don’t break, it´s fine", "\"Curly\" 'quotes' don't break, it's fine"),
        ("Well – yes — no—maybe -- ok - fine", "Well, yes, no, maybe, ok, fine"),
        ("the London–Paris train", "the London-Paris train"),
        ("I am here... And you? Wait... what? So… well…", "I am here. And you? Wait, what? So, well."),
        ("...and then", "and then"),
        ("“Hmm…” she said", '"Hmm." she said'),
        ("Really?! No way!!! What??", "Really? No way! What?"),
        ("He said: go; now.", "He said, go, now."),
        ("Here it is:", "Here it is."),
        ("Hello there", "Hello there"),
        ("Hello\u00a0there\u200b,\n  you", "Hello there, you"),
        ("But I—", "But I"),
    ],
    "brackets": [
        ("[laughs] That is funny [1].", "That is funny."),
        ("He came (late) again.", "He came, late, again."),
        ("(aside) Hello (world).", "aside, Hello, world."),
        ("(Really!) ok, item(s)", "Really! ok, items"),
        ("[0]Hello[1]", "Hello"),
        ("{curly} <b>bold</b> <br/>&amp; more", "curly, bold and more"),
    ],
    "links": [
        ("See https://www.example.com/path?x=1.", "See example dot com."),
        ("www.foo.org or example.com!", "foo dot org or example dot com!"),
        ("mail jo.smith@example.co.uk", "mail jo dot smith at example dot co dot uk"),
        ("[the docs](https://a.com/b_(c)) and ![a cat](cat.png)", "the docs and a cat"),
        ("<https://a.com/x>", "a dot com"),
        ("main.py, Node.js, ASP.NET", "main dot py, Node dot js, ASP dot NET"),
    ],
    "markdown": [
        ("# Title\n\nText", "Title. Text"),
        ("- one **bold** item\n- two `code`\n* three", "one bold item. two code. three."),
        ("1. First\n2. Second", "one, First. two, Second."),
        ("- [x] done", "done."),
        ("**Note:** *very* __much__ _so_ ~~not~~", "Note, very much so not"),
        ("> quoted\n> text", "quoted text"),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", "a, b. one, two."),
        ("Before\n```python\nx = [1, 2]\n```\nAfter", "Before. After"),
        ("above\n\n---\n\nbelow", "above. below"),
        ("a line\nbroken here", "a line broken here"),
        ("2 * 3 * 4 stars", "two times three times four stars"),
    ],
    "emoji": [
        ("Hello 😀 world 👨‍👩‍👧 ❤️ 🇩🇪 👍🏽!", "Hello world!"),
        (":) I like it :D <3", "I like it"),
        ("→ ★ Done ✓ ©", "to Done"),
    ],
    "nothing to say": [
        (text, "") for text in ("", " \n", "...", "😀", "[laughs]", "---", "```\nx\n```", "?!", "—", "\0\x07")
    ],
}


@pytest.mark.parametrize(
    ("written", "spoken"),
    [pytest.param(*case, id=f"{kind}-{case[0]!a}") for kind in SPEAKABLE for case in SPEAKABLE[kind]],
)
def test_speakable(written: str, spoken: str):
    assert speakable(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**Er** hat 3,5 km – für 20 € (oder 50%)…", "Er hat 3,5 km, für 20 €, oder 50%."),
        ("¿Qué tal? „Gut“ 😀 [lacht]", '¿Qué tal? "Gut"'),
    ],
)
def test_other_languages_keep_their_digits(written: str, spoken: str):
    assert speakable(written, language="de") == spoken


PIECES = """
the I said Mr. Dr. e.g. U.S. a.m. 5 p.m. No. 3.14 $5 -$1.50 1. 2) (a) (yes) "Go home." 'tis it's “Wait,” ‘no’ Why?
What?! ok... … — - -- * ** _ ` # #1 [laughs] [ ] ( ) { } < > </b> www.a.com a@b.com http://x.y/z?q=1 etc. i.e. vs.
**bold** `x.y()` A. Inc. 12:30 5'10\" 1/2 10-12 2024 1990s 50% 5km +44 20 😀 ❤️ ∯ ȸ ♬ \\ / | ~ ^ & = + @ $ % 世界 é ² ½
"""
GAPS = ["\n", "\n\n", "\n- ", "\n1. ", "\n# ", "\n```\n", "  ", "\t"]


def babble(seed: int, n_pieces: int = 30) -> str:
    source = random.Random(seed)
    pieces = PIECES.split() + GAPS
    return "".join(source.choice(pieces) + source.choice(["", " ", " "]) for _ in range(source.randint(1, n_pieces)))


def test_what_is_speakable_is_left_as_it_is():
    for cases in SPEAKABLE.values():
        for _, spoken in cases:
            assert speakable(spoken) == spoken


def test_only_what_a_voice_can_read_comes_out():
    for seed in range(300):
        spoken = speakable(babble(seed))
        assert not set(spoken) & set("0123456789[](){}<>*_`#|~^&=+@$%\\/:;—–…“”’\n\t😀♬"), repr(babble(seed))
        assert "  " not in spoken
        assert spoken == spoken.strip()


SENTENCES = [
    ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
    (
        "Dr. Smith paid $5.50 to Mr. Jones, e.g. for 3.14 kg. He left.",
        ["Dr. Smith paid $5.50 to Mr. Jones, e.g. for 3.14 kg.", "He left."],
    ),
    ("The U.S. Army came. It won.", ["The U.S. Army came.", "It won."]),
    ("I woke at 6 a.m. and ran.", ["I woke at 6 a.m. and ran."]),
    (
        'He said "Go home." Then he left. “Is it you?” she asked.',
        ['He said "Go home."', "Then he left.", "“Is it you?” she asked."],
    ),
    ("Wait... what? I am here... And you?", ["Wait... what?", "I am here...", "And you?"]),
    ("No. 5 is alive. No. That is wrong.", ["No. 5 is alive.", "No.", "That is wrong."]),
    ("Visit example.com. Version 2.0.1 is out.", ["Visit example.com.", "Version 2.0.1 is out."]),
    ("Yes. Yes. Yes.", ["Yes.", "Yes.", "Yes."]),
    ("a hard\nwrapped line. And\nanother.", ["a hard wrapped line.", "And another."]),
    ("A title\n\nA paragraph\n\n\nAnother", ["A title", "A paragraph", "Another"]),
    ("# Title\nText", ["# Title", "Text"]),
    ("Buy:\n- milk\n- bread and\n  butter\n1. eggs", ["Buy:", "- milk", "- bread and butter", "1. eggs"]),
    ("| a | b |\n| 1 | 2 |", ["| a | b |", "| 1 | 2 |"]),
    ("See:\n```py\nx = 1. Foo\n\ny\n```\nDone. Yes.", ["See:", "```py\nx = 1. Foo\n\ny\n```", "Done.", "Yes."]),
    ("```\nnever closed. Really.", ["```\nnever closed. Really."]),
    ("", []),
    (" \n\n ", []),
    ("...", ["..."]),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences(text: str, expected: list[str]):
    assert sentences(text) == expected


def test_how_a_text_arrives_makes_no_difference():
    texts = [text for text, _ in SENTENCES] + [babble(seed, 60) for seed in range(40)] + ["so many words, " * 60]
    for text in texts:
        whole = sentences(text)
        for size in (1, 2, 7):
            stream = SentenceStream()
            parts = [s for i in range(0, len(text), size) for s in stream.feed(text[i : i + size])]
            assert parts + stream.flush() == whole, repr(text)


def test_no_character_of_a_text_is_lost():
    for seed in range(100):
        text = babble(seed, 80)
        assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_a_sentence_is_handed_over_once_the_next_word_or_paragraph_tells_that_it_ended():
    stream = SentenceStream()
    assert stream.feed("Hello the") == []
    assert stream.feed("re. How") == []
    assert stream.feed(" are") == ["Hello there."]
    assert stream.feed(" you?\n\n") == ["How are you?"]
    assert stream.feed("It costs 3.") == []
    assert stream.feed("14 dollars") == []
    assert stream.flush() == ["It costs 3.14 dollars"]
    assert stream.flush() == []
    assert stream.feed("Again. And ") == ["Again."]


def test_an_over_long_sentence_is_cut_at_its_clauses():
    clause = "this is one of the clauses, it has a comma; "
    parts = sentences(clause * 20)
    assert len(parts) > 1
    assert all(len(p) <= MAX_CHARS for p in parts)
    assert all(p.endswith("comma;") for p in parts)
    assert " ".join(parts) == (clause * 20).strip()
    assert all(len(p) <= MAX_CHARS for p in sentences("word " * 300))
    assert sentences("x" * 1000) == ["x" * 1000]
    assert sentences("x" * 1000 + " " + "y" * 400 + " z.") == ["x" * 1000, "y" * 400, "z."]


def test_an_unknown_language_follows_english_rules():
    assert sentences("Hello. World.", language="xx") == ["Hello.", "World."]
    assert sentences("Hola. ¿Qué tal? Bien.", language="es") == ["Hola.", "¿Qué tal?", "Bien."]


AWKWARD = ["a", "*", "[", "1", "1-", ". ", "<a ", "a.", "1,", "`", "_a", " ", "\n", "(", "a@", '"', "-", "$1", "#"]


@pytest.mark.parametrize("awkward", AWKWARD)
def test_no_text_takes_long(awkward: str):
    start = time.perf_counter()
    speakable(awkward * 2000)
    assert time.perf_counter() - start < 2


def test_a_long_text_is_cut_in_proportional_time():
    start = time.perf_counter()
    assert len(sentences("Hello there Mr. Jones, how are you? " * 1000)) == 1000
    assert time.perf_counter() - start < 20


def test_importing_the_sentence_splitter_from_source_warns_of_nothing(tmp_path):
    """pysbd's source has invalid escapes; Python warns when it compiles it, as where no .pyc was installed."""
    code = "from csm_mlx.text import sentences; assert sentences('A b. C d.') == ['A b.', 'C d.']"
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_text_that_never_pauses_neither_stops_nor_is_lost() -> None:
    text = "x" * 100_000
    for chunk in (100_000, 7_001):
        stream, pieces = SentenceStream(), []
        started = time.process_time()
        for i in range(0, len(text), chunk):
            pieces += stream.feed(text[i : i + chunk])
        pieces += stream.flush()
        assert time.process_time() - started < 2
        assert "".join(pieces) == text
        assert {len(piece) for piece in pieces} == {1000}
