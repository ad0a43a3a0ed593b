import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm_mlx.audio import AudioWriter, audio_info, format_of, pad_to_frames, read_audio, resample, write_audio
from csm_mlx.errors import AudioError

RATE_HZ = 24_000
ENDINGS = ("wav", "flac", "mp3")


def tone(seconds: float = 1.0, hz: float = 440.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def snr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    noise = float(np.sum((reference - estimate) ** 2)) or 1e-20
    return 10 * np.log10(float(np.sum(reference**2)) / noise)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("ending", "at_least_db"), [("wav", 80), ("flac", 80), ("mp3", 25)])
def test_every_format_reads_back(tmp_path: Path, ending: str, at_least_db: float):
    path = tmp_path / f"a.{ending.upper()}"
    write_audio(path, tone(), RATE_HZ)
    back = read_audio(path, RATE_HZ)
    assert back.dtype == np.float32
    assert back.shape == (RATE_HZ,)
    assert snr_db(tone(), back) > at_least_db
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_sixteen_bits_survive_bit_for_bit(tmp_path: Path, ending: str):
    samples = np.arange(-32768, 32768, dtype=np.int16)
    write_audio(tmp_path / f"a.{ending}", samples / 32768, RATE_HZ)
    read, _ = soundfile.read(tmp_path / f"a.{ending}", dtype="int16")
    np.testing.assert_array_equal(read, samples)


def test_loud_samples_are_clipped(tmp_path: Path):
    write_audio(tmp_path / "a.wav", np.array([-3.0, 0.0, 3.0]), RATE_HZ)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE_HZ), [-1, 0, 1], atol=1e-4)


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path):
    write_audio(tmp_path / "a.flac", tone(), RATE_HZ)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO's count of samples: 36 bits
    data[22:26] = bytes(4)
    (tmp_path / "unknown.flac").write_bytes(data)
    np.testing.assert_array_equal(
        read_audio(tmp_path / "unknown.flac", RATE_HZ), read_audio(tmp_path / "a.flac", RATE_HZ)
    )


def test_channels_are_averaged_and_the_rate_is_changed(tmp_path: Path):
    both = np.stack([tone(1, 440, 44_100), np.zeros(44_100, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, 44_100, subtype="FLOAT")
    back = read_audio(tmp_path / "a.wav", RATE_HZ)
    assert back.shape == (RATE_HZ,)
    assert snr_db(0.5 * tone()[500:-500], back[500:-500]) > 60
    assert audio_info(tmp_path / "a.wav") == (44_100, 44_100)


def test_resample_keeps_the_tone_and_the_length():
    up = resample(tone(1, 440, 16_000), 16_000, RATE_HZ)
    assert up.dtype == np.float32
    assert len(up) == RATE_HZ
    assert snr_db(tone()[500:-500], up[500:-500]) > 60
    assert resample(up, RATE_HZ, RATE_HZ) is up
    with pytest.raises(AudioError, match="from 0 Hz to 24000 Hz"):
        resample(up, 0, RATE_HZ)


@pytest.mark.parametrize(("n", "padded"), [(0, 0), (1, 1920), (1919, 1920), (1920, 1920), (1921, 3840)])
def test_pad_to_frames(n: int, padded: int):
    pcm = pad_to_frames(np.ones(n, np.float32), 1920)
    assert pcm.shape == (padded,)
    assert pcm.dtype == np.float32
    assert pcm.sum() == n


def test_what_cannot_be_read_says_why(tmp_path: Path):
    def message(path: Path) -> str:
        with pytest.raises(AudioError) as caught:
            read_audio(path, RATE_HZ)
        return str(caught.value)

    assert message(tmp_path / "none.wav") == f"{tmp_path / 'none.wav'} is missing; expected a sound file"
    assert "is no regular file" in message(tmp_path)
    (tmp_path / "text.m4a").write_text("not sound")
    assert "Format not recognised" in message(tmp_path / "text.m4a")
    assert "ffmpeg -i text.m4a text-new.wav" in message(tmp_path / "text.m4a")
    (tmp_path / "zero.wav").write_bytes(b"")
    assert "cannot read" in message(tmp_path / "zero.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    assert "holds no samples" in message(tmp_path / "empty.wav")
    for bad in (np.nan, np.inf):
        soundfile.write(tmp_path / "bad.wav", np.array([0, bad, 0]), RATE_HZ, subtype="FLOAT")
        assert "NaN or infinite" in message(tmp_path / "bad.wav")


def test_endings():
    assert format_of("a.b/c.WAV") == "wav"
    with pytest.raises(AudioError, match=r"out\.m4a has the ending \.m4a; expected one of \.wav, \.flac, \.mp3"):
        AudioWriter("out.m4a", RATE_HZ)
    with pytest.raises(AudioError, match="out has no ending"):
        AudioWriter("out", RATE_HZ)
    with pytest.raises(AudioError, match="format is 'aac'"):
        AudioWriter("out", RATE_HZ, "aac")  # pyright: ignore[reportArgumentType]


def test_targets_that_cannot_be_written_are_refused_before_any_sound_is_made(tmp_path: Path):
    with pytest.raises(AudioError, match=r"its folder is missing; make it with 'mkdir -p .*/no'"):
        AudioWriter(tmp_path / "no" / "a.wav", RATE_HZ)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="no regular file"):
        AudioWriter(tmp_path / "folder.wav", RATE_HZ)
    with pytest.raises(AudioError, match="no regular file"):
        AudioWriter("/dev/null", RATE_HZ, "wav")
    with pytest.raises(AudioError, match=r"a stream takes wav, not mp3; name a file instead, such as out\.mp3"):
        AudioWriter("-", RATE_HZ, "mp3")


@pytest.mark.parametrize("ending", ENDINGS)
def test_appending_equals_writing_at_once(tmp_path: Path, ending: str):
    write_audio(tmp_path / f"once.{ending}", tone(), RATE_HZ)
    with AudioWriter(tmp_path / f"parts.{ending}", RATE_HZ) as writer:
        for part in np.split(tone(), [100, 100, 1920, 20_001]):
            writer.write(part)
        assert not (tmp_path / f"parts.{ending}").exists()
    assert writer.n_samples == RATE_HZ
    writer.close()
    np.testing.assert_array_equal(
        read_audio(tmp_path / f"parts.{ending}", RATE_HZ), read_audio(tmp_path / f"once.{ending}", RATE_HZ)
    )
    with pytest.raises(AudioError, match="closed"):
        writer.write(tone())


def test_a_wav_file_is_what_libsndfile_writes(tmp_path: Path):
    write_audio(tmp_path / "a.wav", tone(), RATE_HZ)
    pcm16 = np.rint(tone() * 32768).astype(np.int16)
    soundfile.write(tmp_path / "b.wav", pcm16, RATE_HZ, subtype="PCM_16")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_exception_keeps_what_was_written(tmp_path: Path, ending: str, stop: type[BaseException]):
    def speak() -> None:
        with AudioWriter(tmp_path / f"a.{ending}", RATE_HZ) as writer:
            writer.write(tone()[:12_000])
            raise stop

    with pytest.raises(stop):
        speak()
    assert len(read_audio(tmp_path / f"a.{ending}", RATE_HZ)) == 12_000
    assert names(tmp_path) == [f"a.{ending}"]


def test_nothing_written_touches_nothing(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"older")
    with AudioWriter(tmp_path / "a.wav", RATE_HZ) as writer:
        writer.write(np.zeros(0))
    writer.discard()
    with pytest.raises(AudioError, match="0 samples"):
        write_audio(tmp_path / "a.wav", np.zeros(0), RATE_HZ)
    assert names(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("pcm", "message"),
    [(np.array([0, np.nan]), "NaN"), (np.array([np.inf]), "infinite"), (np.zeros((2, 3)), r"shape \(2, 3\)")],
)
def test_bad_pcm_is_refused_and_the_older_file_stays(tmp_path: Path, pcm: np.ndarray, message: str):
    (tmp_path / "a.wav").write_bytes(b"older")
    with pytest.raises(AudioError, match=message):
        write_audio(tmp_path / "a.wav", pcm, RATE_HZ)
    assert names(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"older"


def test_a_rate_that_a_format_does_not_know(tmp_path: Path):
    with pytest.raises(AudioError, match=r"a\.mp3 at 12345 Hz"):
        write_audio(tmp_path / "a.mp3", tone(), 12_345)
    assert names(tmp_path) == []


def test_a_links_target_is_replaced_and_not_the_link(tmp_path: Path):
    (tmp_path / "real.wav").write_bytes(b"older")
    (tmp_path / "link.wav").symlink_to("real.wav")
    write_audio(tmp_path / "link.wav", tone(), RATE_HZ)
    assert (tmp_path / "link.wav").is_symlink()
    assert len(read_audio(tmp_path / "real.wav", RATE_HZ)) == RATE_HZ


def test_a_stream_gets_a_wav_of_unknown_length(tmp_path: Path):
    stream = io.BytesIO()
    with AudioWriter(stream, RATE_HZ) as writer:
        writer.write(tone()[:1920])
        after_one = len(stream.getvalue())
        writer.write(tone()[1920:])
    assert after_one == 44 + 1920 * 2
    assert not stream.closed
    (tmp_path / "piped.wav").write_bytes(stream.getvalue())
    assert snr_db(tone(), read_audio(tmp_path / "piped.wav", RATE_HZ)) > 80


def run(code: str, *args: object, **options) -> subprocess.CompletedProcess[bytes]:
    head = "import sys, numpy as np\nfrom csm_mlx.audio import AudioWriter, write_audio\nx = np.full(1920, 0.25)\n"
    return subprocess.run([sys.executable, "-c", head + code, *map(str, args)], capture_output=True, **options)


def test_dash_is_stdout():
    done = run("with AudioWriter('-', 24_000) as w:\n    w.write(x)")
    assert done.returncode == 0, done.stderr
    assert done.stdout[:4] == b"RIFF"
    assert len(done.stdout) == 44 + 1920 * 2


def test_a_reader_that_went_away_is_an_audio_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as stream, pytest.raises(AudioError, match="its reader may have gone"):
        AudioWriter(stream, RATE_HZ).write(tone())


def n_playable(path: Path) -> int:
    """Samples that a player gets which goes on until the data end, in the middle of a block perhaps."""
    n = 0
    with soundfile.SoundFile(path) as file, contextlib.suppress(soundfile.LibsndfileError):
        file.seekable = lambda: False
        while block := len(file.read(500)):
            n += block
    return n


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c_leaves_a_playable_file(tmp_path: Path, ending: str):
    path = tmp_path / f"a.{ending}"
    code = (
        "import os, signal\n"
        "with AudioWriter(sys.argv[1], 24_000) as w:\n"
        "    for i in range(100):\n"
        "        w.write(x)\n"
        "        if i == 9: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = run(code, path)
    assert done.returncode in (130, -signal.SIGINT)
    assert len(read_audio(path, RATE_HZ)) == 19_200
    assert names(tmp_path) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_killed_writer_leaves_a_playable_part_and_the_older_file(tmp_path: Path, ending: str):
    (tmp_path / f"a.{ending}").write_bytes(b"older")
    code = (
        "import os, signal\n"
        "w = AudioWriter(sys.argv[1], 24_000)\n"
        "for i in range(100): w.write(x)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run(code, tmp_path / f"a.{ending}").returncode == -signal.SIGKILL
    (part,) = tmp_path.glob(f"a.*.part.{ending}")
    # The last blocks of flac and mp3 are still in the encoder.
    assert 100 * 1920 - n_playable(part) <= (0 if ending == "wav" else 12_000)
    assert (tmp_path / f"a.{ending}").read_bytes() == b"older"


FULL_DISK = (
    "import resource, signal\n"
    "from csm_mlx.errors import AudioError\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (20_001, 20_001))\n"
    "x = np.random.default_rng(0).normal(scale=0.2, size=1920)\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_keeps_what_was_written(tmp_path: Path, ending: str):
    code = FULL_DISK + (
        "try:\n"
        "    with AudioWriter(sys.argv[1], 24_000) as w:\n"
        "        for i in range(1000): w.write(x)\n"
        "except AudioError as error: sys.exit(str(error))\n"
    )
    done = run(code, tmp_path / f"a.{ending}")
    assert b"cannot write" in done.stderr
    assert done.returncode == 1, done.stderr
    assert n_playable(tmp_path / f"a.{ending}") > 5_000
    assert names(tmp_path) == [f"a.{ending}"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_keeps_the_older_file_of_a_whole_write(tmp_path: Path, ending: str):
    (tmp_path / f"a.{ending}").write_bytes(b"older")
    code = FULL_DISK + (
        "try: write_audio(sys.argv[1], np.tile(x, 1000), 24_000)\nexcept AudioError as error: sys.exit(str(error))\n"
    )
    done = run(code, tmp_path / f"a.{ending}")
    assert b"cannot write" in done.stderr
    assert done.returncode == 1, done.stderr
    assert names(tmp_path) == [f"a.{ending}"]
    assert (tmp_path / f"a.{ending}").read_bytes() == b"older"
