"""Wrong usage exits 2 and a failure 1, each with one line on stderr, no traceback, and nothing written."""

import pytest

WRONG = {
    "an unknown flag": (["say", "Hi.", "--tmep", "1"], "No such option: --tmep"),
    "no words": (["say"], "nothing to say"),
    "only brackets": (["say", "(…)"], "nothing to say"),
    "text twice": (["say", "Hi.", "-f", "a.txt"], "not both"),
    "no such file": (["say", "-f", "a.txt"], "a.txt is not there"),
    "a temperature below 0": (["say", "Hi.", "--temp", "-1"], "temperature is -1.0, expected 0"),
    "a mass above 1": (["say", "Hi.", "--top-p", "1.5"], "top_p is 1.5"),
    "a seed that is no number": (["say", "Hi.", "--seed", "x"], "--seed"),
    "a seed beyond 64 bits": (["say", "Hi.", "--seed", "9" * 26], "--seed"),
    "no time at all": (["say", "Hi.", "--max-seconds", "0"], "0 is not above 0"),
    "time without end": (["say", "Hi.", "--max-seconds", "inf"], "inf is not above 0 and finite"),
    "time for half a frame": (["say", "Hi.", "-o", "a.wav", "--max-seconds", "0.04"], "less than a frame of 0.08 s"),
    "sound as text": (["say", "-f", "tone.wav", "-o", "a.wav"], "tone.wav is no plain text"),
    "two things on stdout": (["say", "Hi.", "-o", "-", "--json"], "both would write to stdout"),
    "a clip without its words": (["say", "Hi.", "-v", "tone.wav"], '--voice-text "…"'),
    "words without a clip": (["say", "Hi.", "--voice-text", "x"], "--voice CLIP.wav, which is missing"),
    "words for a stored voice": (["say", "Hi.", "-v", "anna", "--voice-text", "x"], "goes with a clip only"),
    "a clip that is not there": (["say", "Hi.", "-v", "no.wav", "--voice-text", "x"], "no.wav is not there"),
    "codes over the sound": (["say", "Hi.", "-o", "a.wav", "--codes", "./a.wav"], "name another file"),
    "codes over their source": (["codec", "encode", "tone.wav", "folder/../tone.wav"], "name another file"),
    "a plot that is no drawing": (["codec", "compare", "tone.wav", "tone.wav", "--plot", "a.txt"], "not end in .png"),
    "codes into nowhere": (["say", "Hi.", "--codes", "no/a.safetensors"], "the folder no is not there"),
    "no codebooks": (["codec", "encode", "tone.wav", "a", "--codebooks", "0"], "--codebooks"),
    "too many codebooks": (["codec", "encode", "tone.wav", "a", "--codebooks", "99"], "99, but this codec has"),
    "nothing to convert": (["convert"], "name a folder or a hub id"),
    "a source twice": (["convert", "a", "--hf-path", "b"], "the same as --hf-path"),
    "seven bits": (["convert", "a", "b", "--q-bits", "7"], "7 bits were asked for, expected one of 2, 3, 4, 5, 6, 8"),
    "no bits": (["convert", "a", "b", "--q-bits", "0"], "--q-bits"),
    "no groups": (["convert", "a", "b", "--q-group-size", "0"], "--q-group-size"),
    "a recipe and bits": (["quantize", "a", "b", "--q-recipe", "q4", "--q-bits", "4"], "choose one"),
    "a plot of no report": (["quantize", "a", "b", "--plot", "x.png"], "it belongs to --report"),
    "nowhere to train to": (["train", "words.txt"], "name the folder to make: -o adapters/NAME"),
    "no clips": (["train", "no.jsonl", "-o", "a"], "no.jsonl is not there"),
    "epochs and steps": (["train", "words.txt", "-o", "a", "--epochs", "1", "--steps", "1"], "choose one"),
    "a share above 1": (["train", "words.txt", "-o", "a", "--validation", "1.5"], "1.5 is no share"),
    "validation by nothing": (["train", "words.txt", "-o", "a", "--validation", "no.jsonl"], "no.jsonl is not there"),
    "patience for nothing": (["train", "words.txt", "-o", "a", "--patience", "3"], "--validation"),
    "no learning": (["train", "words.txt", "-o", "a", "--lr", "0"], "learning_rate is 0.0, expected a number above 0"),
    "every weight of low rank": (["train", "words.txt", "-o", "a", "--method", "full", "--rank", "4"], "--rank"),
    "on and anew": (["train", "words.txt", "-o", "a", "--resume", "--force"], "choose one"),
    "a picture of no kind": (["train", "words.txt", "-o", "a", "--plot", "a.jpg"], "does not end in .png"),
    "nowhere to fuse to": (["fuse", "folder"], "--out"),
    "a voice without text": (["voices", "add", "anna", "tone.wav"], "--text"),
}
FAILED = {
    "an unknown ending": (
        ["say", "Hi.", "-o", "a.ogg"],
        "a.ogg has the ending .ogg; expected one of .wav, .flac, .mp3",
    ),
    "a missing folder": (["say", "Hi.", "-o", "no/a.wav"], "mkdir -p"),
    "an unknown model": (["say", "Hi.", "-o", "a.wav", "--model", "no/such/model"], "no/such/model does not exist"),
    "an unknown voice": (
        ["say", "Hi.", "-o", "a.wav", "-v", "anna"],
        "no voice 'anna'; none is stored yet: csm voices",
    ),
    "a context that is sound": (["say", "Hi.", "--context", "tone.wav"], "tone.wav is no UTF-8 text"),
    "an adapter that is none": (["say", "Hi.", "-o", "a.wav", "--adapter", "folder"], "folder is no adapter"),
    "nothing to fuse": (["fuse", "folder", "-o", "out"], "folder is no adapter, it holds no adapter_config.json"),
    "clips that are none": (["train", "words.txt", "-o", "a"], "words.txt:1: no JSON"),
    "a voice by path": (["voices", "rm", "../tone"], "'../tone' is no voice name"),
    "a clip that is no sound": (["say", "Hi.", "-o", "a.wav", "-v", "words.txt", "--voice-text", "x"], "cannot read"),
    "codes that are none": (["codec", "decode", "tone.wav", "a.wav"], "expected codes that csm codec encode"),
    "a missing source": (["convert", "no/such/model", "out"], "no/such/model does not exist"),
    "an output that is there": (
        ["convert", "no/such/model", "folder"],
        "folder exists and holds more than a checkpoint (mine.txt)",
    ),
}


@pytest.fixture(autouse=True)
def files(tmp_path, tone):
    (tmp_path / "tone.wav").write_bytes(tone.read_bytes())
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("kept")


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(call, tmp_path, case):
    arguments, message = WRONG[case]
    _refused(call(*arguments), 2, message, tmp_path)


@pytest.mark.parametrize("case", FAILED)
def test_failure(call, tmp_path, case):
    arguments, message = FAILED[case]
    _refused(call(*arguments), 1, message, tmp_path)


def _refused(result, code, message, folder):
    error = result.err.splitlines()[-1]
    assert result.code == code, result.err
    assert result.out == b""
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in result.err
    assert sorted(path.name for path in folder.iterdir()) == ["folder", "tone.wav", "words.txt"]
    assert (folder / "folder" / "mine.txt").read_text() == "kept"


def test_debug_shows_the_traceback(run):
    result = run("say", "Hi.", "-o", "a.ogg", env={"CSM_DEBUG": "1"})
    assert result.code == 1
    assert "Traceback" in result.err


def test_every_bad_line_of_a_context_is_named(call, tmp_path, tone):
    lines = (
        f'{{"speaker": 1, "text": "Fine.", "audio": "{tone}"}}',
        "",
        "{no json",
        '{"speaker": "one", "text": "", "audio": "no.wav", "mood": "glad"}',
        '["a", "list"]',
        '{"text": "Who?"}',
    )
    (tmp_path / "turns.jsonl").write_text("\n".join(lines))
    result = call("say", "Hi.", "-o", "a.wav", "--context", "turns.jsonl")
    assert result.code == 1
    assert not (tmp_path / "a.wav").exists()
    errors = result.err.splitlines()
    assert all(line.startswith("error: turns.jsonl:") for line in errors)
    places = [line.split(":")[2] for line in errors]
    assert places == ["3", "4", "4", "4", "4", "5", "6"]
    for said in ("no JSON", "unknown field 'mood'", 'speaker is "one"', 'text is ""', "no.wav is not there", "missing"):
        assert said in result.err
