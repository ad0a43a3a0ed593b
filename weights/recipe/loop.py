"""The one training loop: time budget, learning rate, progress, resumable state."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from state import load_torch, log, save_torch
from torch import Tensor

WARM_UP_STEPS = 150
SAVE_EVERY_S = 180
Losses = Callable[[float], tuple[Tensor, dict[str, float]]]


def parser_of(doc: str | None, *, minutes: float, rows: int, peak: float) -> argparse.ArgumentParser:
    """The options that every training stage has."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--minutes", type=float, default=minutes, help="of training in all, over every run")
    parser.add_argument("--rows", type=int, default=rows, help="of a batch")
    parser.add_argument("--peak", type=float, default=peak, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    return parser


class Loop:
    """Trains `weights` for `minutes` in all, from wherever an earlier run stopped.

    weights: name -> parameter, what is optimized. state: gives the tensors to save; restore: takes them back.
    betas, decay: of AdamW. slower: name -> divisor of that parameter's learning rate.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        path: Path,
        weights: dict[str, Tensor],
        state: Callable[[], dict],
        restore: Callable[[dict], None],
        *,
        betas: tuple[float, float],
        decay: float,
        slower: dict[str, float] | None = None,
    ):
        self.args, self.path, self.state, self.weights = args, path, state, weights
        slower = slower or {}
        groups = [{"params": [p for n, p in weights.items() if n not in slower]}]
        groups += [{"params": [weights[n]]} for n in slower]
        self.peaks = [args.peak, *(args.peak / divisor for divisor in slower.values())]
        self.optimizer = torch.optim.AdamW(groups, lr=args.peak, betas=betas, weight_decay=decay, fused=True)
        self.step, self.spent_s, self.curve = 0, 0.0, []
        if path.exists():
            saved = load_torch(path, args.device)
            restore(saved)
            if "optimizer" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent_s, self.curve = saved["step"], saved["spent_s"], json.loads(saved["curve"])
            log(f"resumed at step {self.step}, {self.spent_s / 60:.1f} minutes")
        log(f"{sum(p.numel() for p in weights.values()) / 1e6:.2f} M weights to train")

    @property
    def progress(self) -> float:
        return min(1.0, self.spent_s / (self.args.minutes * 60))

    def save(self) -> None:
        state = {**self.state(), "optimizer": self.optimizer.state_dict()}
        save_torch(self.path, {**state, "step": self.step, "spent_s": self.spent_s, "curve": json.dumps(self.curve)})

    def note(self, figures: dict[str, float]) -> None:
        """Add a point to the curve."""
        self.curve.append({"step": self.step, "minutes": self.spent_s / 60, **figures})

    def _set_learning_rate(self) -> None:
        """Warm-up, flat to 30 % of the time, then a cosine to 3 %."""
        part = max(0.0, (self.progress - 0.3) / 0.7)
        factor = min(1.0, (self.step + 1) / WARM_UP_STEPS) * (0.03 + 0.485 * (1 + np.cos(np.pi * part)))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = float(peak * factor)

    def run(self, losses: Losses, *, report_every: int = 50, on_save: Callable[[], None] | None = None) -> None:
        """`losses` gets the progress in 0..1 and returns the loss and figures for the curve."""
        sums: dict[str, float] = {}
        n_summed = 0
        saved_at = time.time()
        while self.progress < 1:
            began = time.time()
            self._set_learning_rate()
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.bf16):
                loss, figures = losses(self.progress)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.spent_s += time.time() - began
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + value
            n_summed += 1
            if self.step % report_every == 0:
                means, sums, n_summed = {k: v / n_summed for k, v in sums.items()}, {}, 0
                self.note(means)
                left = (1 - self.progress) * self.args.minutes
                text = " ".join(f"{k} {v:.4f}" for k, v in means.items())
                log(f"step {self.step} {text} | {self.spent_s / self.step:.2f} s/step, {left:.1f} min left")
            if time.time() - saved_at > SAVE_EVERY_S:
                self.save()
                saved_at = time.time()
                if on_save:
                    on_save()
        self.save()
