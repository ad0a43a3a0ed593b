"""From nothing to weights/csm-tiny: every stage in order, each from where it stopped, then `csm convert`.

A stage that is done takes seconds; after a kill, at most three minutes of training are done again.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from state import log, state_path

HERE = Path(__file__).parent
TINY = HERE.parent / "csm-tiny"
STAGES = (
    ("corpus.npz", ["corpus.py"]),
    ("", ["train_lm.py", "--minutes", "95", "--bf16"]),
    ("contexts.npz", ["contexts.py"]),
    ("", ["speech.py", "--sentences", "6000"]),
    ("", ["train_basis.py", "--minutes", "85"]),
    ("", ["train_filters.py", "--minutes", "46"]),
    ("", ["export.py"]),
    ("", ["plot.py"]),
)
"""(file that shows that it is done, or nothing where the stage itself knows; command)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="in the language model")
    parser.add_argument("--out", type=Path, default=TINY, help="the checkpoint; its README.md stays")
    args = parser.parse_args()
    for i, (done, (script, *options)) in enumerate(STAGES):
        if done and state_path(done).exists():
            continue
        log(f"stage {i + 1} of {len(STAGES)}: {script} {' '.join(options)}")
        options = [o for o in options if o != "--bf16" or args.bf16]
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)
    card, kept = args.out / "README.md", state_path("card.md")
    if card.exists():
        shutil.copyfile(card, kept)
    convert = [sys.executable, "-m", "csm_mlx_app", "convert", str(state_path("export")), str(args.out)]
    subprocess.run([*convert, "--dtype", "float16", "--force"], check=True)
    if kept.exists():
        shutil.copyfile(kept, card)
    log(f"{args.out}: measure it with csm evaluate {HERE / 'heldout.txt'} --model {args.out} --speaker 0")


if __name__ == "__main__":
    main()
