"""What a transcript is worth."""

import pytest
from csm_mlx_app.assistant.transcripts import interrupts, is_echo, is_empty, is_invented

REPLY = (
    "The capital of France is Paris, which lies on the Seine. It has been the seat of government for most of the "
    "last thousand years, and about two million people live within its limits."
)


@pytest.mark.parametrize("text", ["", "  ", "...", "[BLANK_AUDIO]", "(coughing)", "*sighs*"])
def test_no_words(text):
    assert is_empty(text)


@pytest.mark.parametrize(("text", "invented"), [("Thank you.", True), (" you", True), ("Thank you, Paris.", False)])
def test_what_whisper_invents(text, invented):
    assert is_invented(text) is invented


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("Mhm.", False),
        ("Uh-huh, yeah.", False),
        ("Oh, really?", False),
        ("", False),
        ("Stop!", True),
        ("No.", True),
        ("Yeah, but where?", True),
        ("What about Spain", True),
    ],
)
def test_what_interrupts(text, does):
    assert interrupts(text) is does


@pytest.mark.parametrize(
    "text",
    [
        "the capital of France is Paris",
        "which lies on the sane",
        "most of the last thousand years",
        "capitol of France's",
        "two million people live within",
        "It has been the seed of government",
    ],
)
def test_what_is_being_spoken_is_an_echo(text):
    assert is_echo(text, REPLY)


@pytest.mark.parametrize(
    "text",
    [
        "What about Spain?",
        "No, I meant Texas.",
        "Stop.",
        "how many people live in London",
        "thank you that is enough",
        "Paris",
        "",
        "can you say it again more slowly",
        "I do not care about its limits",
    ],
)
def test_what_somebody_else_says_is_none(text):
    assert not is_echo(text, REPLY)
    assert not is_echo(text, "")
