"""Every stage in order, each from where it stopped: `python voice.py`."""

import argparse
import subprocess
import sys
from pathlib import Path

from state import log, state_path

HERE = Path(__file__).parent
STAGES = (
    ["train_lm.py", "--minutes", "75", "--bf16"],
    ["speech.py"],
    ["train_basis.py", "--minutes", "31"],
    ["train_basis.py", "--minutes", "34.6", "--peak", "6e-3", "--own-voices"],
    ["refit.py"],
    ["train_filters.py", "--minutes", "26"],
    ["export.py"],
    ["evaluate.py", "--kind", "speak", "--speaker", "0"],
    ["evaluate.py", "--kind", "speak", "--speaker", "1"],
    ["evaluate.py", "--kind", "codec", "--speaker", "0"],
    ["plot.py"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="in the language model")
    args = parser.parse_args()
    stages = STAGES if state_path("corpus.npz").exists() else (["corpus.py"], *STAGES)
    for script, *options in stages:
        options = [o for o in options if o != "--bf16" or args.bf16]
        log(f"{script} {' '.join(options)}")
        subprocess.run([sys.executable, str(HERE / script), *options], check=True)
    log(f"now: csm convert {state_path('export')} weights/csm-tiny --dtype float16 --force")


if __name__ == "__main__":
    main()
