"""Word error rate by whisper tiny.en on the held-out sentences, of four sounds: the synthetic speech, the decoder on
true codes, the codec's encode and decode, and the language model speaking.
"""

import argparse
import json

import codec as codec_module
import export
import lm
import numpy as np
import texts
import torch
from lm_data import PackedTurn
from phones import VOICES, plan, spell
from speech import say
from state import log, state_path
from synth import SAMPLE_RATE_HZ
from train_lm import edits

from csm_mlx.evaluate import compare
from csm_mlx.measure import pitch_hz
from csm_mlx.recognize import Whisper


def sounds(kind: str, speaker: int, lines: list[str], temperature: float) -> tuple[list[np.ndarray], dict]:
    """The sound of every line and what is known of its codes."""
    if kind == "speech":
        return [say(plan(spell(line)), VOICES[speaker])[0][0] for line in lines], {}
    codec, extra = export.load_codec("decoder"), {}
    plans = [plan(spell(line)) for line in lines]
    turns = [PackedTurn(speaker, p.text, VOICES[speaker].codes(p.phones), p.letters) for p in plans]
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
        pcm = [torch.from_numpy(say(p, VOICES[speaker])[0][0]) for p in plans]
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
    parser.add_argument("--of", choices=("heldout", "fresh"), default="heldout", help="which sentences")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--wav", action="store_true", help="keep the sounds in the state folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = texts.held_out(args.of)[: args.sentences]
    made, figures = sounds(args.kind, args.speaker, lines, args.temperature)
    wrong = total = 0
    whisper = Whisper()
    for i, (line, sound) in enumerate(zip(lines, made, strict=True)):
        heard = whisper.transcribe(sound.astype(np.float32), SAMPLE_RATE_HZ)
        n_words, errors, _ = compare(line, heard)
        wrong, total = wrong + errors, total + n_words
        if errors:
            log(f"  {errors}: {line} -> {heard}")
        if args.wav:
            import soundfile

            soundfile.write(state_path("wav", f"{args.kind}{args.speaker}_{i:02d}.wav"), sound, SAMPLE_RATE_HZ)
    pitches = [hz for x in made if (hz := pitch_hz(x, SAMPLE_RATE_HZ)) is not None]
    result = {"kind": args.kind, "speaker": args.speaker, "temperature": args.temperature, "sentences": len(lines)}
    result |= {"word_error_rate": round(wrong / total, 4), "pitch_hz": round(float(np.median(pitches)), 1), **figures}
    log(json.dumps(result))
    with state_path("results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
