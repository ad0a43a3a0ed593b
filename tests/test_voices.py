import dataclasses
import json
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.models import mimi_config

from csm_mlx.audio import read_audio, write_audio
from csm_mlx.config import MimiConfig
from csm_mlx.errors import VoiceError
from csm_mlx.models.mimi import Mimi
from csm_mlx.voices import VoiceStore, codec_fingerprint

CODEC = mimi_config(sample_rate_hz=8000, ratios=(4, 4), codebook_size=16, codebook_dim=8)


def make_codec(seed: int = 0, config: MimiConfig = CODEC) -> Mimi:
    mx.random.seed(seed)
    return Mimi(config)


def clip(n_samples: int = 4000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, n_samples).astype(np.float32)


def codes_of(path: Path, codec: Mimi) -> np.ndarray:
    pcm = read_audio(path, codec.config.sample_rate_hz)
    return np.asarray(codec.encode(mx.array(pcm)[None, :, None])[0][0])


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "data" / "voices")


def test_a_voice_comes_back_as_it_was_stored(store: VoiceStore):
    codec = make_codec()
    added = store.add("anna-2", clip(), " Grüß Gott, “hello”. ", codec, speaker=3)
    voice = store.get("anna-2")
    assert voice == added
    assert (voice.name, voice.text, voice.speaker) == ("anna-2", "Grüß Gott, “hello”.", 3)
    assert (voice.sample_rate_hz, voice.seconds) == (8000, 0.5)
    np.testing.assert_allclose(voice.pcm(), clip(), atol=1e-4)
    assert voice.pcm(16_000).shape == (8000,)
    codes = store.codes("anna-2", codec)
    assert codes.dtype == np.int32
    assert codes.shape == (125, 4)
    np.testing.assert_array_equal(codes, codes_of(voice.path / "clip.wav", codec))
    np.testing.assert_array_equal(store.codes("anna-2", codec, n_codebooks=2), codes[:, :2])
    assert sorted(os.listdir(voice.path)) == ["clip.wav", "codes.safetensors", "voice.json"]
    assert mx.load(str(voice.path / "codes.safetensors"))["codes"].dtype == mx.int32  # pyright: ignore


def test_listing_and_removing(store: VoiceStore):
    assert store.list() == ()
    codec = make_codec()
    for name in ("b", "a"):
        store.add(name, clip(), "text", codec)
    (store.root / ".a.123.new").mkdir()
    (store.root / ".a.123.new" / "voice.json").touch()
    (store.root / "notes.txt").touch()
    assert [v.name for v in store.list()] == ["a", "b"]
    store.remove("a")
    assert [v.name for v in store.list()] == ["b"]
    with pytest.raises(VoiceError, match=r"no voice 'a' in .*; there are b$"):
        store.remove("a")
    with pytest.raises(VoiceError, match="no voice 'c'"):
        store.get("c")
    store.remove("b")
    with pytest.raises(VoiceError, match="there is none yet"):
        store.get("b")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "A", "a b", "-a", "_a", ".a", "ä", "a\n", "a\0", "a" * 65, "a.wav"],
)
def test_a_name_is_never_a_path(store: VoiceStore, name: str):
    store.root.mkdir(parents=True)
    outside = store.root.parent / "x"
    outside.mkdir()
    for act in (
        lambda: store.get(name),
        lambda: store.remove(name),
        lambda: store.codes(name, make_codec()),
        lambda: store.add(name, clip(), "text", make_codec(), force=True),
    ):
        with pytest.raises(VoiceError, match="is no voice name; expected 1 to 64 of a-z"):
            act()
    assert outside.is_dir()
    assert list(store.root.iterdir()) == []


def test_a_voice_is_replaced_only_by_force(store: VoiceStore):
    codec = make_codec()
    store.add("a", clip(), "older", codec)
    with pytest.raises(VoiceError, match=r"'a' is there already, in .*; replace it with --force"):
        store.add("a", clip(), "newer", codec)
    assert store.get("a").text == "older"
    store.add("a", clip(6000), "newer", codec, force=True)
    assert (store.get("a").text, store.get("a").seconds) == ("newer", 0.75)
    assert os.listdir(store.root) == ["a"]


@pytest.mark.parametrize(
    ("pcm", "text", "speaker", "message"),
    [
        (clip(), " \n", 0, "no transcript"),
        (clip(), "text", -1, "speaker is -1"),
        (clip(32), "text", 0, r"the clip lasts 0\.00 s, expected 0\.3 or more; 5 to 15 s of one person's clear speech"),
        (clip() / 1000, "text", 0, "the clip is silent, expected speech"),
        (clip().reshape(2, -1), "text", 0, r"shape \(2, 2000\), expected \(n_samples,\) of one channel"),
    ],
)
def test_bad_voices_are_refused(store: VoiceStore, pcm: np.ndarray, text: str, speaker: int, message: str):
    with pytest.raises(VoiceError, match=message):
        store.add("a", pcm, text, make_codec(), speaker=speaker)
    assert not store.root.exists()


def test_an_interrupted_replacement_leaves_the_older_voice(store: VoiceStore, monkeypatch: pytest.MonkeyPatch):
    codec = make_codec()
    store.add("a", clip(), "older", codec)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("csm_mlx.voices._encode", "csm_mlx.voices._meta", "csm_mlx.voices._replace_folder"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(step, interrupted)
            store.add("a", clip(), "newer", codec, force=True)
        assert os.listdir(store.root) == ["a"]
        assert store.get("a").text == "older"


def test_codes_of_another_codec_are_made_again_and_kept(store: VoiceStore):
    first, second = make_codec(0), make_codec(1)
    store.add("a", clip(), "text", first, speaker=1)
    clip_bytes = (store.root / "a" / "clip.wav").read_bytes()
    expected = codes_of(store.root / "a" / "clip.wav", second)
    assert not np.array_equal(expected, store.codes("a", first))

    np.testing.assert_array_equal(store.codes("a", second), expected)
    voice = store.get("a")
    assert voice.codec == codec_fingerprint(second)
    assert (voice.text, voice.speaker) == ("text", 1)
    np.testing.assert_array_equal(mx.load(str(voice.path / "codes.safetensors"))["codes"], expected)  # pyright: ignore
    assert (store.root / "a" / "clip.wav").read_bytes() == clip_bytes


def test_a_codec_of_another_rate_leaves_the_clip_as_it_is(store: VoiceStore):
    slow = make_codec(1, dataclasses.replace(CODEC, sample_rate_hz=4000))
    store.add("a", clip(), "text", make_codec())
    assert store.codes("a", slow).shape == (63, 4)
    assert store.get("a").sample_rate_hz == 8000
    assert store.get("a").seconds == 0.5


@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_missing_or_torn_codes_are_made_again(store: VoiceStore, content: bytes | None):
    codec = make_codec()
    voice = store.add("a", clip(), "text", codec)
    codes = store.codes("a", codec)
    file = voice.path / "codes.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(whole[:-20] if content == b"torn" else content)
    np.testing.assert_array_equal(store.codes("a", codec), codes)
    assert file.read_bytes() == whole


def test_a_store_that_cannot_be_written_still_gives_codes(store: VoiceStore, monkeypatch: pytest.MonkeyPatch):
    store.add("a", clip(), "text", make_codec(0))
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom no mode stops
    other = make_codec(1)
    np.testing.assert_array_equal(store.codes("a", other), codes_of(store.root / "a" / "clip.wav", other))
    assert store.get("a").codec == codec_fingerprint(make_codec(0))


def test_a_place_that_is_no_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(VoiceError, match=r"cannot store the voice 'a' in .*file"):
        VoiceStore(tmp_path / "file").add("a", clip(), "text", make_codec())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"'a' is broken \(voice\.json: No such file"),
        ("{", "'a' is broken"),
        (json.dumps({"text": "x"}), "lacks the field 'speaker'"),
        (json.dumps({"txt": "x"}), "unknown field 'txt'; did you mean 'text'"),
    ],
)
def test_a_broken_voice_says_so_and_can_be_removed(store: VoiceStore, content: str | None, message: str):
    voice = store.add("a", clip(), "text", make_codec())
    (voice.path / "voice.json").unlink()
    if content is not None:
        (voice.path / "voice.json").write_text(content)
    with pytest.raises(VoiceError, match=message):
        store.get("a")
    store.remove("a")
    assert store.list() == ()


def test_a_voice_without_its_clip_is_broken(store: VoiceStore):
    voice = store.add("a", clip(), "text", make_codec())
    (voice.path / "clip.wav").unlink()
    with pytest.raises(VoiceError, match=r"broken \(clip\.wav is missing\); remove it and add it again"):
        store.get("a")


def test_removing_a_link_leaves_what_it_points_to(store: VoiceStore, tmp_path: Path):
    store.root.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    write_audio(tmp_path / "elsewhere" / "clip.wav", clip(), 8000)
    (store.root / "a").symlink_to(tmp_path / "elsewhere")
    store.remove("a")
    assert not (store.root / "a").exists()
    assert (tmp_path / "elsewhere" / "clip.wav").exists()


def test_the_fingerprint_follows_configuration_and_codebooks():
    same, other_books = make_codec(0), make_codec(1)
    other_config = make_codec(0, dataclasses.replace(CODEC, dilation_base=1))
    prints = [codec_fingerprint(c) for c in (make_codec(0), same, other_books, other_config)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert len(prints[0]) == 16
