"""Answers from any model that mlx-lm can load, a token at a step, on the caller's thread."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import CsmError
from csm_mlx.nn.layout import laid_out, lies_by_inputs, on_cpu
from csm_mlx.sampling import Sampler
from csm_mlx_app.assistant.replies import DEFAULT_LLM, Message, ReplyError
from csm_mlx_app.assistant.replies.recent import MAX_HISTORY_TOKENS, Recent
from csm_mlx_app.assistant.replies.thinking import END, START, Thinking

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


TEMPERATURE, TOP_P = 0.6, 0.9
MAX_TOKENS = 200
"""About a minute of speech."""
PREFILL_TOKENS, CPU_PREFILL_TOKENS = 64, 16
"""Of the prompt at one step: about as long as a frame of speech takes."""
_CONTEXT_TOKENS = 2048
"""Of models that do not say."""


@dataclass(frozen=True)
class Loaded:
    model: Any
    """An mlx-lm model: tokens (1, T) and `cache` to logits (1, T, V)."""
    tokenizer: "TokenizerWrapper"
    context_tokens: int


class MlxLm:
    """model: a hub id or a folder; or a function that makes the folder when it is needed.

    name: for people, where `model` is a function.
    temperature, top_p: None is the default above; 0 is greedy. Every answer draws from `seed` and the number of
        messages before it, so that what was begun and dropped changes nothing.
    system, examples: the system prompt of conversations that have none, and exchanges that come before theirs.
    max_history_tokens: with more, or more than half of the model's context, the oldest exchanges are left out.
    dequantize_on_cpu: compute in float32 there, where MLX's quantized products are slow; for small models only.

    All of it is for one thread, which `warm_up` or the first `step` binds it to.
    """

    computes = True

    def __init__(
        self,
        model: str | Callable[[], str],
        *,
        name: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        system: str | None = None,
        examples: Sequence[Message] = (),
        max_tokens: int = MAX_TOKENS,
        max_history_tokens: int = MAX_HISTORY_TOKENS,
        prefill_tokens: int | None = None,
        dequantize_on_cpu: bool = False,
    ):
        self._source = model
        self.name = name or (model if isinstance(model, str) else "a model of mlx-lm's")
        self.sampler = Sampler(
            SamplingConfig(
                temperature=TEMPERATURE if temperature is None else temperature,
                top_k=0,
                top_p=TOP_P if top_p is None else top_p,
            )
        )
        self.seed, self.max_tokens = seed, max_tokens
        self._opening: list[Message] = [*([{"role": "system", "content": system}] if system else []), *examples]
        self._max_history_tokens = max_history_tokens
        self.prefill_tokens = prefill_tokens or (CPU_PREFILL_TOKENS if on_cpu() else PREFILL_TOKENS)
        self._dequantize_on_cpu = dequantize_on_cpu
        self._recent = Recent()
        self._last: MlxLmReply | None = None

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> "MlxLmReply":  # noqa: ARG002
        if self._last is not None:
            self._last.cancel()
        self._last = MlxLmReply(self, list(messages))
        return self._last

    def warm_up(self) -> None:
        """Loads, which may fetch gigabytes, and computes two tokens, which compiles."""
        reply = self.reply([{"role": "user", "content": "Hello."}], lambda: None)
        n_pieces = 0
        while n_pieces < 2 and (piece := reply.step()) is not None:
            n_pieces += bool(piece)
        reply.cancel()

    @cached_property
    def loaded(self) -> Loaded:
        try:
            import mlx_lm
        except ImportError:
            raise CsmError(
                "language models on this machine need mlx-lm: pip install 'csm-mlx[talk]', with Python 3.11 or newer"
            ) from None
        source = self._source if isinstance(self._source, str) else self._source()
        try:
            model, tokenizer, config = mlx_lm.load(source, return_config=True)  # pyright: ignore[reportAssignmentType]
            if self._dequantize_on_cpu and on_cpu():
                model.set_dtype(mx.float32)  # first: half precision is slow there
                model = mlx_lm.utils.dequantize_model(model)
                mx.eval(model.parameters())
                _lay_out(model)
        except Exception as error:  # mlx-lm, transformers and the hub client raise what they like
            raise CsmError(
                f"cannot load the language model {self.name!r} ({_first_line(error)}); give --llm a folder or a hub id "
                f"of an mlx-lm model, such as {DEFAULT_LLM}, or use --llm-url"
            ) from None
        if not tokenizer.has_chat_template:
            raise CsmError(f"{self.name} has no chat template, so it cannot answer; give --llm an instruct model")
        config = config.get("text_config", config)
        return Loaded(model, tokenizer, config.get("max_position_embeddings") or _CONTEXT_TOKENS)

    @cached_property
    def cache(self) -> "PromptCache":
        return PromptCache(self.loaded.model)

    def prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of the messages, without the oldest exchanges where they are too many."""
        n_kept = 1
        if messages[0]["role"] != "system":
            messages, n_kept = [*self._opening, *messages], len(self._opening)
        limit = min(self._max_history_tokens, self.loaded.context_tokens // 2)
        ids = self._recent.fit(messages, n_kept, self._ids, len, limit)
        if len(ids) >= self.loaded.context_tokens:
            raise ReplyError(
                f"what you said has {len(ids)} tokens, {self.name} holds {self.loaded.context_tokens}; say it in parts"
            )
        return ids

    def _ids(self, messages: list[Message]) -> list[int]:
        from jinja2 import TemplateError

        tokenizer = self.loaded.tokenizer
        try:
            return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False))
        except TemplateError:  # some know no system prompt, or want user and assistant to alternate
            messages = _alternating(messages)
        try:
            return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False))
        except TemplateError as error:
            raise ReplyError(
                f"the chat template of {self.name} refuses the conversation ({error}); give --llm another model"
            ) from None

    def thinking(self, ids: list[int]) -> Thinking:
        """For an answer to the prompt `ids`."""
        tokenizer = self.loaded.tokenizer
        if not tokenizer.has_thinking:
            return Thinking()
        inside = tokenizer.rfind_think_start(ids) > tokenizer.rfind_think_end(ids)
        return Thinking(tokenizer.think_start or START, tokenizer.think_end or END, inside=inside)


class MlxLmReply:
    def __init__(self, replier: MlxLm, messages: list[Message]):
        self._replier, self._messages = replier, messages
        self._pieces = self._generate()

    def step(self) -> str | None:
        return next(self._pieces, None)

    def cancel(self) -> None:
        self._pieces.close()

    def _generate(self) -> Generator[str]:
        replier = self._replier
        ids = replier.prompt(self._messages)
        cache, loaded = replier.cache, replier.loaded
        n_known = cache.keep(ids)
        try:
            while len(ids) - n_known > 1:
                end = min(n_known + replier.prefill_tokens, len(ids) - 1)
                cache.prefill(ids[n_known:end])
                n_known = end
                yield ""
            yield from self._answer(ids, cache, loaded)
        except (RuntimeError, ValueError) as error:  # what MLX raises, as for lack of memory
            cache.clear()
            raise ReplyError(f"{replier.name} failed: {_first_line(error)}; try a smaller --llm") from None

    def _answer(self, ids: list[int], cache: "PromptCache", loaded: Loaded) -> Iterator[str]:
        """A piece for each token, "" while it thinks or a character is incomplete."""
        replier, tokenizer = self._replier, loaded.tokenizer
        detokenizer, thinking = tokenizer.detokenizer, replier.thinking(ids)
        n_tokens = 0
        # Closed here, on the thread that computes: the garbage collector may run on any, and streams are a thread's.
        with closing(cache.tokens(ids[-1], self._draw(), loaded.context_tokens - len(ids))) as tokens:
            for token in tokens:
                if token in tokenizer.eos_token_ids:
                    break
                detokenizer.add_token(token)
                yield thinking.feed(detokenizer.last_segment)
                n_tokens += not thinking.inside
                if n_tokens == replier.max_tokens:
                    break
        detokenizer.finalize()
        rest = thinking.feed(detokenizer.last_segment) + thinking.finish()
        if rest:
            yield rest

    def _draw(self) -> Callable[[mx.array], mx.array]:
        """mlx-lm's kind of sampler, (1, V) to (1,), with noise of our own: the global state stays as it is."""
        sampler = self._replier.sampler
        key = mx.random.key(self._replier.seed % 2**32 << 32 | len(self._messages))

        def draw(logits: mx.array) -> mx.array:
            nonlocal key
            key, own = mx.random.split(key)
            return sampler(logits, sampler.noise(own, logits.shape))[:, 0]

        return draw


class PromptCache:
    """Keys and values of the tokens in `ids`, kept from one answer to the next: only what is new is computed."""

    def __init__(self, model: Any):
        self._model = model
        self.clear()

    def clear(self) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.ids: list[int] = []
        self._layers = make_prompt_cache(self._model)

    def keep(self, ids: Sequence[int]) -> int:
        """Forget all but the common prefix of `ids`, whose last token is never in it; its length."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        n = 0
        while n < min(len(self.ids), len(ids) - 1) and self.ids[n] == ids[n]:
            n += 1
        n_extra = len(self.ids) - n
        if n_extra and not (
            can_trim_prompt_cache(self._layers) and trim_prompt_cache(self._layers, n_extra) == n_extra
        ):
            self.clear()  # sliding windows and recurrent states cannot go back
        else:
            self.ids = self.ids[:n]
        return len(self.ids)

    def prefill(self, ids: list[int]) -> None:
        self._model(mx.array(ids)[None], cache=self._layers)
        mx.eval([layer.state for layer in self._layers])
        self.ids += ids

    def tokens(self, last: int, draw: Callable[[mx.array], mx.array], max_tokens: int) -> Generator[int]:
        """What follows `last`, the end of the prompt; each token is in the cache by the time that it is handed out."""
        from mlx_lm.generate import generate_step

        # The thread's own stream and not mlx-lm's: its generator would leave its stream the default between two steps,
        # and the speech in between would run there.
        stream = mx.default_stream(mx.default_device())
        steps = generate_step(
            mx.array([last]), self._model, stream, max_tokens=max_tokens, sampler=draw, prompt_cache=self._layers
        )
        self.ids.append(last)
        with closing(steps):
            for token, _ in steps:
                self.ids.append(int(token))
                yield int(token)


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """The system prompt as the beginning of the user's first message, and messages of one role after another joined."""
    joined: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if joined and joined[-1]["role"] == role:
            joined[-1] = {"role": role, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append({"role": role, "content": message["content"]})
    return joined


def _lay_out(model: nn.Module) -> None:
    """Its matrices, as products on this CPU read them fastest."""
    if lies_by_inputs():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight = laid_out(module.weight, 1, 0)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
