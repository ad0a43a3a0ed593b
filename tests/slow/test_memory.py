"""Ten minutes of speech in one session: memory does not grow. `make slow` prints the curve; minutes of work."""

import json
from pathlib import Path

import pytest
from support.training import python

pytestmark = pytest.mark.slow

SENTENCES = Path(__file__).parents[2] / "weights" / "recipe" / "fresh.txt"
SPOKEN_S = 600
SETTLED_S = 120
"""The positions run out after a minute, and the context is rebuilt; then all caches are as large as they become."""
SLACK_BYTES = 8_000_000
"""What allocators keep or give back by chance."""

PROGRAM = """
import json, sys
from itertools import cycle
from pathlib import Path
import mlx.core as mx
import csm_mlx
from support.memory import resident_bytes

csm = csm_mlx.load()
session, sound_s, n_turns, n_forgotten, samples = csm.session(), 0.0, 0, 0, []
for text in cycle(Path(sys.argv[1]).read_text().split("\\n")):
    if not text.strip():
        continue
    n_held = len(session.turns)
    speech = session.speak(text, speaker=n_turns % 2)
    sound_s += sum(len(pcm) for pcm in speech) / csm.sample_rate_hz
    n_turns += 1
    n_forgotten += n_held + 1 - len(session.turns)
    samples.append((sound_s, resident_bytes(), mx.get_active_memory(), session.n_positions))
    if sound_s >= float(sys.argv[2]):
        break
json.dump({"n_turns": n_turns, "n_forgotten": n_forgotten, "samples": samples}, sys.stdout)
"""


def test_memory_is_flat_over_ten_minutes_of_speech() -> None:
    done = python(PROGRAM, SENTENCES, SPOKEN_S, timeout_s=3000)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    samples = told["samples"]
    print(f"\n{told['n_turns']} turns, {told['n_forgotten']} forgotten; sound, resident, MLX's arrays, positions:")
    for minute in range(0, SPOKEN_S, 60):
        sound_s, resident, active, n_positions = next(s for s in samples if s[0] >= minute)
        print(f"  {sound_s:5.0f} s  {resident / 1e6:6.1f} MB  {active / 1e6:5.1f} MB  {n_positions:5d}")
    assert told["n_forgotten"] > 10
    for column, name in ((1, "resident"), (2, "active")):
        early = max(s[column] for s in samples if s[0] < SETTLED_S)
        late = max(s[column] for s in samples if s[0] >= SETTLED_S)
        print(f"  {name}: at most {early / 1e6:.1f} MB in the first two minutes, {late / 1e6:.1f} MB later")
        assert late < early + SLACK_BYTES, name
