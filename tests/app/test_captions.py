"""Subtitles: where they are cut, and how they are written; and words as running text and on a terminal."""

from itertools import pairwise

import pytest
from csm_mlx_app import telling
from csm_mlx_app.captions import MAX_CUE_S, MAX_LINE_CHARS, Cue, CueBuilder, srt, vtt
from csm_mlx_app.telling import CueTeller, JsonTeller, LiveTeller, TextTeller

from csm_mlx.generate.words import Word


def words(text: str, each_s: float = 0.4, start_s: float = 0.0) -> list[Word]:
    """Evenly spoken; `|` is a pause of 2 s, which is in the time of the word before it."""
    found = []
    for part in text.split("|"):
        for word in part.split():
            found.append(Word(text=word, start_s=start_s, stop_s=start_s + each_s))
            start_s += each_s
        last = found[-1]
        found[-1] = Word(text=last.text, start_s=last.start_s, stop_s=start_s + 2.0)
        start_s += 2.0
    return found


def cues(given: list[Word]) -> list[Cue]:
    builder = CueBuilder()
    return [cue for word in given for cue in builder.put(word)] + builder.end()


def test_cues_end_with_sentences_and_pauses_and_fit_a_screen() -> None:
    text = (
        "The boat left the harbour before the sun was up. Yes. It is a quarter to four in the afternoon, and we "
        "have a long way to go | before we are there"
    )
    found = cues(words(text, 0.3))
    assert [" / ".join(cue.lines) for cue in found] == [
        "The boat left the harbour / before the sun was up.",
        "Yes. It is a quarter to four in the / afternoon, and we have a long way to go",
        "before we are there",
    ]
    for cue, following in pairwise(found):
        assert cue.start_s < cue.stop_s <= following.start_s


@pytest.mark.parametrize("each_s", [0.2, 0.6, 1.5])
def test_no_cue_is_too_large(each_s: float) -> None:
    given = words("and then we went on and on without an end as if nobody had ever told us " * 10, each_s)
    found = cues(given)
    assert " ".join(" ".join(cue.lines) for cue in found) == " ".join(word.text for word in given)
    for cue in found:
        assert cue.stop_s - cue.start_s <= MAX_CUE_S + 0.01
        assert len(cue.lines) <= 2
        assert max(map(len, cue.lines)) <= MAX_LINE_CHARS
    assert cues([Word(text="x" * 90, start_s=0, stop_s=1)])[0].lines == ("x" * 90,)
    assert cues([]) == []


def test_how_they_are_written() -> None:
    cue = Cue(3661.5, 3663.0004, ("Tom & Jerry", "<are> --> here"))
    assert srt(cue, 7) == "7\n01:01:01,500 --> 01:01:03,000\nTom & Jerry\n<are> --> here\n\n"
    block = "01:01:01.500 --> 01:01:03.000\nTom &amp; Jerry\n&lt;are&gt; --&gt; here\n\n"
    assert vtt(cue, 1) == "WEBVTT\n\n" + block
    assert vtt(cue, 2) == block


def told(make, given: list[Word]) -> str:
    parts: list[str] = []
    teller = make(parts.append)
    for word in given:
        teller.put(word)
    teller.end()
    return "".join(parts)


def test_golden_files() -> None:
    given = words("The boat left the harbour. | How are you?", 0.5)
    assert told(lambda w: CueTeller(w, "srt"), given) == (
        "1\n00:00:00,000 --> 00:00:03,040\nThe boat left the harbour.\n\n"
        "2\n00:00:04,500 --> 00:00:06,220\nHow are you?\n\n"
    )
    assert told(lambda w: CueTeller(w, "vtt"), given) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.040\nThe boat left the harbour.\n\n"
        "00:00:04.500 --> 00:00:06.220\nHow are you?\n\n"
    )
    assert told(TextTeller, given) == "The boat left the harbour.\nHow are you?\n"
    assert told(JsonTeller, given[:1]) == '{"text": "The", "start_s": 0.0, "stop_s": 0.5}\n'
    assert told(lambda w: CueTeller(w, "vtt"), []) == "WEBVTT\n\n"
    assert told(lambda w: CueTeller(w, "srt"), []) == told(TextTeller, []) == ""


def test_a_turn_begins_a_new_line() -> None:
    parts: list[str] = []
    teller = TextTeller(parts.append)
    teller.pause()
    one, two = words("Yes. No.")
    teller.put(one)
    teller.pause()
    teller.put(two)
    teller.end()
    assert "".join(parts) == "Yes.\nNo.\n"


def drawn(text: str, width: int) -> list[str]:
    """The lines that a terminal shows."""
    lines, row, column, i = [[" "] * width], 0, 0, 0
    while i < len(text):
        c = text[i]
        if c == "\033":
            end = next(k for k in range(i, len(text)) if text[k].isalpha())
            if text[end] == "K":
                lines[row][column:] = [" "] * (width - column)
            i = end
        elif c == "\b":
            assert column > 0, "it stays at the edge"
            column -= 1
        elif c == "\n":
            lines.append([" "] * width)
            row, column = row + 1, 0
        else:
            assert column < width, "the terminal would wrap by itself"
            lines[row][column] = c
            column += 1
        i += 1
    return ["".join(line).rstrip() for line in lines]


def test_a_terminal_shows_the_word_that_is_being_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_width", lambda: 30)
    parts: list[str] = []
    teller = LiveTeller(parts.append)
    given = words("The boat left the harbour before the sun was up and went away. | How are you?")
    for word in given:
        for n in range(1, len(word.text) + 1):
            teller.put(Word(text=word.text[:n], start_s=word.start_s))
            assert word.text[: min(n, 2)] in drawn("".join(parts), 30)[-1] or len(word.text) > 5
        teller.put(word)
    teller.end()
    assert drawn("".join(parts), 30) == [
        "The boat left the harbour",
        "before the sun was up and",
        "went away.",
        "How are you?",
        "",
    ]
