"""Real speech for the parity runs, made on the spot by hibari-tts (Apache-2.0, its voice is inside the package)."""

# pyright: reportMissingImports=false
import numpy as np
from hibari import Hibari

SAMPLE_RATE_HZ = 24_000
FRAME_SIZE = 1920

TEST = (
    "The harbour was quiet when the ferry came in, and nobody saw who stepped ashore. She carried two bags, "
    "a folded map, and a letter that had been opened twice. What did it say? Only that the house was hers now! "
    "Rain began to fall, softly at first, then hard enough to hide the hills."
)
TRAINING = (
    "A kettle whistled somewhere behind the wall. Six grey geese flew over the frozen lake, calling to each other. "
    "Why would anyone paint a door that colour? The judge asked for silence, twice, and got none. "
    "Every spring the river takes a little more of the garden. Please leave the keys on the table when you go. "
    "He laughed, shook his head, and poured another cup of coffee. Thirty years of work were packed in four boxes. "
    "The orchestra tuned, the lights went down, and the child in the front row sneezed. Is that thunder, or a lorry? "
    "Fresh bread, sharp cheese and cold apples make a very good lunch. The old bridge hums when the wind is right. "
    "Nobody could agree on the name of the dog. Turn left at the chapel, then follow the smell of the sea. "
    "Her voice was low, rough and full of smoke. Mathematics is mostly the art of giving up at the right moment. "
    "They measured the room again and found it smaller. Good morning, this is the weather for the islands. "
)


def test_speech(seconds: float) -> np.ndarray:
    """The first `seconds` of a fixed text, float32 (n,) in [-1, 1], always whole frames."""
    return _first(Hibari()(TEST, seed=0), seconds)


def training_speech(seconds: float) -> np.ndarray:
    """Other sentences than `test_speech`, at several speeds, to fit codebooks to."""
    voice = Hibari()
    pieces = [voice(TRAINING, speed=speed, seed=i) for i, speed in enumerate((1.0, 0.85, 1.2))]
    return _first(np.concatenate(pieces), seconds)


def _first(pcm: np.ndarray, seconds: float) -> np.ndarray:
    n_samples = round(seconds * SAMPLE_RATE_HZ) // FRAME_SIZE * FRAME_SIZE
    if len(pcm) < n_samples:
        raise SystemExit(f"the text gives {len(pcm) / SAMPLE_RATE_HZ:.1f} s of speech, {seconds} s were asked for")
    return pcm[:n_samples].astype(np.float32)
