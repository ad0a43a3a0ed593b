"""`csm evaluate` through its entry point."""

import json

SENTENCES = "What time is it?\n\nThe children are playing in the garden.\nNever said.\n"


def test_sentences_are_said_heard_and_counted(call, tmp_path):
    (tmp_path / "sentences.txt").write_text(SENTENCES)
    done = call("evaluate", "sentences.txt", "--limit", "2", "--temp", "0", "--plot", "errors.png", "--json")
    assert done.code == 0, done.err
    numbers = json.loads(done.out)
    assert numbers["n_sentences"] == 2
    assert [u["text"] for u in numbers["utterances"]] == ["What time is it?", "The children are playing in the garden."]
    assert numbers["word_error_rate"] == sum(u["n_wrong"] for u in numbers["utterances"]) / 11
    assert numbers["n_missing_ends"] == 0
    assert numbers["words_per_minute"] > 60
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_evaluated(call, tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "sentences.txt").write_text(SENTENCES)
    empty = call("evaluate", "empty.txt")
    assert (empty.code, empty.text) == (2, "")
    assert "empty.txt holds no sentence, expected one per line" in empty.err
    missing = call("evaluate", "nowhere.txt")
    assert missing.code == 2
    assert "nowhere.txt is not there" in missing.err
    deaf = call("evaluate", "sentences.txt", "--whisper", str(tmp_path / "no-model"))
    assert (deaf.code, deaf.text) == (1, "")
    assert "cannot load whisper" in deaf.err
    assert "give a folder of faster-whisper's format" in deaf.err
