"""`csm voices`: add, list, speak with, remove."""

import json

import numpy as np
import soundfile


def test_a_voice_comes_and_goes(call, tmp_path, tone):
    empty = call("voices")
    assert (empty.code, empty.out) == (0, b"")
    assert "csm voices add NAME CLIP.wav" in empty.err

    add = ("voices", "add", "anna", tone, "--text", "A falling tone.", "--speaker", "1")
    assert call(*add).code == 0
    (voice,) = json.loads(call("voices", "--json").text)
    assert (voice["name"], voice["speaker"], voice["seconds"]) == ("anna", 1, 1.0)
    assert voice["text"] == "A falling tone."
    assert "A falling tone." in call("voices").text

    again = call(*add)
    assert again.code == 1
    assert "--force" in again.err
    assert call(*add, "--force").code == 0

    assert call("voices", "rm", "anna").code == 0
    gone = call("voices", "rm", "anna")
    assert gone.code == 1
    assert "no voice 'anna'" in gone.err
    assert not list((tmp_path / "data" / "voices").iterdir())


def test_a_clip_that_leaves_no_room_to_speak_is_refused(call, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 90), 8000)
    result = call("voices", "add", "anna", "long.wav", "--text", "Far too much.")
    assert result.code == 1
    assert "error: long.wav lasts 90 s, a voice may last 20 s" in result.err
    assert not (tmp_path / "data" / "voices" / "anna").exists()
