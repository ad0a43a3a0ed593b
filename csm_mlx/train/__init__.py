"""Training a voice: a manifest of turns in, an adapter or a whole checkpoint out.

manifest = read_manifest("clips.jsonl", csm)
examples = encode_examples(csm, manifest.examples, cache=manifest.cache_folder)
result = train(csm, TrainConfig(epochs=3), examples, "adapters/anna")
"""

from csm_mlx.train.config import TrainConfig as TrainConfig
from csm_mlx.train.curves import plot_curves as plot_curves
from csm_mlx.train.data import EncodedExample as EncodedExample
from csm_mlx.train.data import encode_examples as encode_examples
from csm_mlx.train.loss import Losses as Losses
from csm_mlx.train.manifest import Example as Example
from csm_mlx.train.manifest import Manifest as Manifest
from csm_mlx.train.manifest import hold_out as hold_out
from csm_mlx.train.manifest import read_manifest as read_manifest
from csm_mlx.train.memory import MemoryEstimate as MemoryEstimate
from csm_mlx.train.memory import estimate as estimate
from csm_mlx.train.state import CurvePoint as CurvePoint
from csm_mlx.train.state import curves_path as curves_path
from csm_mlx.train.state import read_curve as read_curve
from csm_mlx.train.state import training_folder as training_folder
from csm_mlx.train.trainer import StepReport as StepReport
from csm_mlx.train.trainer import TrainResult as TrainResult
from csm_mlx.train.trainer import is_main_rank as is_main_rank
from csm_mlx.train.trainer import train as train
