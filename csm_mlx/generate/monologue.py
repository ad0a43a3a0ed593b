"""Drawing the text that Moshi says to itself, one token a frame: how talkative it is, and that it does not go on about
the same thing. As in Kyutai's server; there is no waiting for the device."""

from dataclasses import dataclass

import mlx.core as mx

from csm_mlx.config import MoshiConfig, SamplingConfig
from csm_mlx.errors import ConfigError
from csm_mlx.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What is done to the text's logits before a token is drawn; by default nothing."""

    repetition_penalty: float = 1.0
    """Divides the logits of what was said lately, or multiplies those below zero; 1 is off."""
    repetition_context: int = 64
    """How many of the last tokens are remembered for that, pads and word marks not counted."""
    pad_bias: float = 0.0
    """Added to the logit of saying nothing: above 0 is quieter, below more talkative."""

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty <= 100:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}, expected above 0 to 100; 1 is off")
        if not 1 <= self.repetition_context <= 10_000:
            raise ConfigError(f"repetition_context is {self.repetition_context}, expected 1 to 10000 tokens")
        if not -100 <= self.pad_bias <= 100:
            raise ConfigError(f"pad_bias is {self.pad_bias}, expected -100 to 100; 0 is off")


class TextSampler:
    """A `Sampler` of text with `TextRules`, whose memory is the caller's to keep."""

    def __init__(self, config: MoshiConfig, sampling: SamplingConfig, rules: TextRules):
        self._sampler, self._rules, self._n_ids = Sampler(sampling), rules, config.text_head_size
        self._pad, self._mark = config.text_pad_id, config.text_word_id
        self._bias: mx.array | None = None
        if rules.pad_bias:
            self._bias = mx.array([rules.pad_bias if n == self._pad else 0.0 for n in range(self._n_ids)])

    def make_state(self, batch: int) -> mx.array | None:
        """The memory of a conversation before its first word, (B, repetition_context); None where there is no need."""
        if self._rules.repetition_penalty == 1:
            return None
        return mx.full((batch, self._rules.repetition_context), self._n_ids, mx.int32)  # an id that nobody says

    def __call__(self, logits: mx.array, key: mx.array, recent: mx.array | None) -> tuple[mx.array, mx.array | None]:
        """logits (B, text_head_size); ids (B, 1) and the memory with them."""
        if self._bias is not None:
            logits = logits.astype(mx.float32) + self._bias
        if recent is None:
            return self._sampler(logits, self._sampler.noise(key, logits.shape)), None
        logits = self._penalized(logits.astype(mx.float32), recent)
        ids = self._sampler(logits, self._sampler.noise(key, logits.shape)).astype(mx.int32)
        later = mx.concatenate([recent[:, 1:], ids], axis=1)
        return ids, mx.where((ids == self._pad) | (ids == self._mark), recent, later)

    def _penalized(self, logits: mx.array, recent: mx.array) -> mx.array:
        penalty = self._rules.repetition_penalty
        nobody = mx.zeros((logits.shape[0], self._n_ids + 1), mx.bool_)
        said = mx.put_along_axis(nobody, recent, mx.array(True), axis=1)[:, : self._n_ids]
        return mx.where(said, mx.where(logits > 0, logits / penalty, logits * penalty), logits)
