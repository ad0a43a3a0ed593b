"""From nothing to weights/csm-tiny: every stage in order, each from where it stopped, then `csm convert`.

A stage that is done takes seconds; after a kill, at most three minutes of training are done again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from state import log, state_path

HERE = Path(__file__).parent
TINY = HERE.parent / "csm-tiny"
STAGES = (
    ("corpus.npz", ["corpus.py", "--sentences", "90000"]),
    ("", ["train_lm.py", "--minutes", "95", "--bf16"]),
    ("", ["train_lm.py", "--minutes", "137", "--bf16", "--rows", "4", "--length", "512"]),
    ("contexts.npz", ["contexts.py", "--sentences", "8000"]),
    ("", ["speech.py", "--sentences", "6000"]),
    ("", ["train_basis.py", "--minutes", "85"]),
    ("", ["train_filters.py", "--minutes", "46"]),
    ("", ["export.py"]),
    ("", ["plot.py"]),
)
"""(file that shows that it is done, or nothing where the stage itself knows; command)"""
REHEARSED = {"90000": "2000", "8000": "400", "6000": "250", "95": "0.5", "137": "0.8", "85": "0.3", "46": "0.3"}
"""Of a rehearsal: how much in place of how much."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the checkpoint; its README.md stays (default: weights/csm-tiny)")
    parser.add_argument(
        "--rehearse", action="store_true", help="every stage in a minute or less: a voice that babbles, into the state"
    )
    args = parser.parse_args()
    if args.rehearse:
        os.environ["CSM_VOICE_STATE"] = str(state_path("rehearsal", "x").parent)
    out = args.out or (state_path("csm-tiny") if args.rehearse else TINY)
    for i, (done, (script, *options)) in enumerate(STAGES):
        if done and state_path(done).exists():
            continue
        if args.rehearse:
            options = [REHEARSED.get(option, option) for option in options]
        log(f"stage {i + 1} of {len(STAGES)}: {script} {' '.join(options)}")
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)
    card, kept = out / "README.md", state_path("card.md")
    if card.exists():
        shutil.copyfile(card, kept)
    convert = [sys.executable, "-m", "csm_mlx_app", "convert", str(state_path("export")), str(out)]
    subprocess.run([*convert, "--dtype", "float16", "--force"], check=True)
    if kept.exists():
        shutil.copyfile(kept, card)
    log(f"{out}: measure it with csm evaluate {HERE / 'heldout.txt'} --model {out} --speaker 0")


if __name__ == "__main__":
    main()
