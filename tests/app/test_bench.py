"""`csm bench` through its entry point."""

import json


def test_the_embedded_voice_is_timed(call, tmp_path):
    done = call("bench", "--frames", "12", "--plot", "frames.png", "--json")
    assert done.code == 0, done.err
    numbers = json.loads(done.out)
    assert numbers["model"] == "csm-tiny"
    assert len(numbers["frame_ms"]) == 12
    assert numbers["frame_bytes"] == 4 * 3_841_536
    assert 0 < numbers["frame_p50_ms"] <= numbers["frame_p99_ms"]
    assert {"chip", "device", "versions"} <= set(numbers)
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_every_figure(call):
    done = call("bench", "--frames", "5")
    assert done.code == 0, done.err
    for figure in ("first audio", "frame, median", "real-time factor", "prefill", "codec, decode", "floor", "peak"):
        assert figure in done.text
    assert "15.4 MB of weights" in done.text


def test_what_is_refused(call):
    assert call("bench", "--frames", "0").code == 2
    picture = call("bench", "--plot", "frames.jpg")
    assert (picture.code, picture.text) == (2, "")
    assert "does not end in .png" in picture.err
    missing = call("bench", "--model", "nowhere-at-all")
    assert (missing.code, missing.text) == (1, "")
