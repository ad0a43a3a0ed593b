"""`csm codec`: there and back, frame by frame as at once, and how near it came."""

import json
import math
import re

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from csm_mlx_app.codes import read_codes

from csm_mlx.errors import AudioError
from csm_mlx.stored import preset

K = preset("csm-tiny").csm.n_codebooks


def test_there_and_back(call, tmp_path, tone, load_codes):
    encoded = call("codec", "encode", tone, "a.safetensors", "--json")
    streamed = call("codec", "encode", tone, "b.safetensors", "--stream", "--codebooks", "2")
    decoded = call("codec", "decode", "a.safetensors", "a.wav")
    coarse = call("codec", "decode", "a.safetensors", "-", "--stream", "--codebooks", "2")
    assert [r.code for r in (encoded, streamed, decoded, coarse)] == [0] * 4

    codes, first = (load_codes(f"{name}.safetensors") for name in "ab")
    assert codes.dtype == np.int32
    assert codes.shape == (13, K)  # one second and what fills the last frame
    assert np.array_equal(codes[:, :2], first)
    assert json.loads(encoded.text) == {
        "output": "a.safetensors",
        "frames": 13,
        "codebooks": K,
        "sound_s": 1.0,
        "bits_per_second": 12.5 * K * math.log2(preset("csm-tiny").codec.codebook_size),
    }
    sound, rate = soundfile.read(tmp_path / "a.wav")
    (tmp_path / "coarse.wav").write_bytes(coarse.out)
    coarse_sound, _ = soundfile.read(tmp_path / "coarse.wav")
    assert (rate, len(sound), len(coarse_sound)) == (24_000, 13 * 1920, 13 * 1920)
    assert not np.allclose(sound, coarse_sound, atol=1e-3)


def test_compare_measures_and_draws(call, tmp_path, tone):
    pcm, rate = soundfile.read(tone)
    noise = np.random.default_rng(0).normal(size=len(pcm))
    for name, share in (("near", 0.01), ("far", 0.3)):
        soundfile.write(tmp_path / f"{name}.wav", pcm + share * noise * np.std(pcm), rate)
    near = call("codec", "compare", tone, "near.wav", "--json", "--plot", "near.png")
    far = call("codec", "compare", tone, "far.wav")
    assert (near.code, far.code) == (0, 0), near.err + far.err
    numbers = json.loads(near.text)
    shown = dict(line.split() for line in far.text.splitlines()[1:])
    assert numbers["si_snr_db"] == pytest.approx(40, abs=1)
    assert float(shown["si_snr_db"]) == pytest.approx(10.5, abs=1)
    assert float(shown["mel_distance"]) > numbers["mel_distance"] > 0
    assert (tmp_path / "near.png").read_bytes()[1:4] == b"PNG"


BAD_CODES = {
    "has 9 codebooks, the codec 4": {"codes": mx.zeros((3, 9), mx.int32)},
    "codes from 2000 to 2000, the codec takes 0 to 511": {"codes": mx.full((3, 4), 2000, mx.int32)},
    "codes of shape (12,)": {"codes": mx.zeros((12,), mx.int32)},
    "type float32": {"codes": mx.zeros((3, 4))},
    "holds kodes, expected the tensor codes": {"kodes": mx.zeros((3, 4), mx.int32)},
    "holds t0, t1, t2, t3, …, expected": {f"t{i}": mx.zeros((1,)) for i in range(9)},
}


@pytest.mark.parametrize("message", BAD_CODES)
def test_codes_that_the_codec_cannot_have_made_are_refused(tmp_path, message):
    mx.save_safetensors(str(tmp_path / "bad.safetensors"), BAD_CODES[message])
    with pytest.raises(AudioError, match=re.escape(message)):
        read_codes(tmp_path / "bad.safetensors", codebook_size=512, max_codebooks=4)


def test_codes_of_another_codec_are_one_line(call, tmp_path):
    mx.save_safetensors(str(tmp_path / "bad.safetensors"), {"codes": mx.zeros((3, 9), mx.int32)})
    result = call("codec", "decode", "bad.safetensors", "a.wav")
    assert (result.code, result.out) == (1, b"")
    assert re.fullmatch(rf"error: bad.safetensors has 9 codebooks, the codec {K}; name its --model\n", result.err)
    assert not (tmp_path / "a.wav").exists()
