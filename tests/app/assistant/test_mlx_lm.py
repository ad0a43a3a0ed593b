"""Answers from mlx-lm: tiny random models, loaded by the real thing, whose cache must change nothing but the time."""

import json
import shutil
import threading
from pathlib import Path

import mlx.core as mx
import pytest
from csm_mlx_app.assistant.replies import Message, ReplyError
from csm_mlx_app.assistant.replies.mlx_lm import MlxLm, MlxLmReply
from mlx.utils import tree_flatten

from csm_mlx.errors import CsmError

pytest.importorskip("mlx_lm", reason="the extra talk is not installed")

TOKENIZER = Path(__file__).parents[3] / "weights" / "csm-tiny" / "tokenizer.json"
TEMPLATE = (
    "{% for m in messages %}<|begin_of_text|>{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|begin_of_text|>assistant {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system prompt') }}{% endif %}" + TEMPLATE
SYSTEM: Message = {"role": "system", "content": "be brief"}


def make_model(folder: Path, *, sliding: bool = False, template: str | None = TEMPLATE) -> str:
    """A Llama of two layers, random, whose logits are far apart."""
    from mlx_lm.models.llama import Model, ModelArgs

    folder.mkdir()
    shutil.copy(TOKENIZER, folder)
    n_tokens = len(json.loads(TOKENIZER.read_text())["model"]["vocab"]) + 8
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": n_tokens,
        "max_position_embeddings": 400,
        "tie_word_embeddings": True,
    }
    if sliding:
        config |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    mx.random.seed(1)
    model = Model(ModelArgs.from_dict(config))
    parameters = dict(tree_flatten(model.parameters()))
    weights = {name: 0.3 * mx.random.normal(array.shape) for name, array in parameters.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | ({"chat_template": template} if template else {}))
    )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("llm") / "plain")


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("llm") / "sliding", sliding=True)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def rest(reply: MlxLmReply) -> str:
    text = ""
    while (piece := reply.step()) is not None:
        text += piece
    return text


def answer(replier: MlxLm, messages: list[Message]) -> str:
    return rest(replier.reply(messages, lambda: None))


def greedy(model: str, *, max_tokens: int = 12, prefill_tokens: int = 16, max_history_tokens: int = 200) -> MlxLm:
    return MlxLm(
        model,
        temperature=0,
        max_tokens=max_tokens,
        prefill_tokens=prefill_tokens,
        max_history_tokens=max_history_tokens,
    )


@pytest.mark.parametrize("kind", ["model", "sliding"])
def test_what_the_cache_holds_changes_no_answer(kind, request):
    model = request.getfixturevalue(kind)
    kept = greedy(model)
    first = [SYSTEM, user("hello there, how are you")]
    said = answer(kept, first)
    assert said
    longer = [*first, assistant(said), user("and then")]
    cut = [*first, assistant(said[: len(said) // 2]), user("stop, listen")]
    for messages in (longer, cut, first, [SYSTEM, user("hello")], longer):
        assert answer(kept, messages) == answer(greedy(model), messages)


def test_only_what_is_new_of_a_prompt_is_computed(model):
    replier = greedy(model, prefill_tokens=4)
    messages = [SYSTEM, user("a long question " * 6)]
    reply = replier.reply(messages, lambda: None)
    n_prompt = len(replier.prompt(messages))
    n_chunks = 0
    while reply.step() == "":
        n_chunks += 1
    assert n_chunks >= (n_prompt - 1) // 4
    said = answer(replier, messages)
    follow_up = [*messages, assistant(said[:4]), user("go on")]
    n_common = replier.cache.keep(replier.prompt(follow_up))
    assert n_common >= n_prompt - 4
    reply = replier.reply(follow_up, lambda: None)
    n_new = len(replier.prompt(follow_up)) - n_common
    for _ in range(-(-(n_new - 1) // 4)):
        assert reply.step() == ""
        assert len(replier.cache.ids) < len(replier.prompt(follow_up))
    reply.step()
    assert len(replier.cache.ids) == len(replier.prompt(follow_up)) + 1


def test_an_answer_may_be_left_at_any_step(model):
    replier = greedy(model, prefill_tokens=4)
    messages = [user("one two three four five")]
    whole = answer(greedy(model), messages)
    for n_steps in range(0, 14, 3):
        reply = replier.reply(messages, lambda: None)
        for _ in range(n_steps):
            reply.step()
        if n_steps % 2:
            reply.cancel()
            assert reply.step() is None
        assert answer(replier, messages) == whole, "asking again ends what was going on"
        assert reply.step() is None


def test_same_seed_same_answer_whatever_was_dropped(model):
    messages = [user("tell me a story")]

    def warm(seed: int) -> MlxLm:
        return MlxLm(model, temperature=0.7, seed=seed, max_tokens=12)

    told = answer(warm(1), messages)
    replier = warm(1)
    replier.warm_up()
    mx.random.seed(3)
    expected = mx.random.uniform().item()
    mx.random.seed(3)
    replier.reply([user("tell me")], lambda: None).step()
    assert answer(replier, messages) == told
    assert mx.random.uniform().item() == expected, "nobody else's noise is used"
    assert answer(warm(2), messages) != told


def test_an_answer_has_an_end(model):
    replier = greedy(model, max_tokens=5)
    reply = replier.reply([user("hello")], lambda: None)
    n_tokens = 0
    while reply.step() is not None:
        n_tokens = len(replier.cache.ids)
    assert n_tokens <= len(replier.prompt([user("hello")])) + 5


def test_the_oldest_exchanges_are_left_out(model):
    replier = greedy(model, max_history_tokens=150)
    messages: list[Message] = [SYSTEM]
    left_out = []
    for turn in range(12):
        messages += [user(f"question {turn}"), assistant(f"answer {turn}")]
        ids = replier.prompt([*messages, user("and now")])
        assert len(ids) <= 150
        text = str(replier.loaded.tokenizer.decode(ids))
        assert "be brief" in text
        assert "and now" in text
        left_out.append(next(i for i in range(turn + 1) if f"question {i}<" in text))
    assert left_out[0] == 0
    assert left_out[-1] > 4
    assert len(set(left_out)) < 7, "several at a time, so that the cache is of use in between"
    assert replier.prompt([SYSTEM, user("new")]) == greedy(model).prompt([SYSTEM, user("new")])
    with pytest.raises(ReplyError, match=r"tokens, .* holds 400; say it in parts"):
        answer(replier, [user("word " * 1000)])


def test_a_conversation_without_a_system_prompt_gets_the_models_own(model):
    own = MlxLm(model, system="be brief")
    assert own.prompt([user("hello")]) == greedy(model).prompt([SYSTEM, user("hello")])
    assert own.prompt([{"role": "system", "content": "x"}, user("hello")]) != own.prompt([user("hello")])
    exchange: list[Message] = [user("one"), {"role": "assistant", "content": "two"}]
    taught = MlxLm(model, system="be brief", examples=exchange)
    assert taught.prompt([user("hello")]) == greedy(model).prompt([SYSTEM, *exchange, user("hello")])


def test_a_template_without_system_prompts_gets_it_with_the_first_message(model, tmp_path):
    replier = greedy(make_model(tmp_path / "gemma", template=NO_SYSTEM))
    assert replier.prompt([SYSTEM, user("hello")]) == greedy(model).prompt([user("be brief\n\nhello")])
    picky = "{{ raise_exception('Never') }}"
    with pytest.raises(ReplyError, match=r"refuses the conversation \(Never\)"):
        answer(greedy(make_model(tmp_path / "picky", template=picky)), [user("hello")])


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(CsmError, match=r"has no chat template, .* instruct model"):
        greedy(make_model(tmp_path / "base", template=None)).warm_up()
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), "nobody/no-such-model"):
        with pytest.raises(CsmError, match=r"cannot load the language model .*; give --llm a folder or a hub id"):
            greedy(name).warm_up()


def test_any_thread_may_own_it(model):
    told: list[object] = []

    def work() -> None:
        try:
            replier = greedy(model)
            replier.warm_up()
            before = mx.default_stream(mx.default_device())
            reply = replier.reply([user("hello")], lambda: None)
            reply.step()
            told.append(mx.default_stream(mx.default_device()) == before)
            told.append(rest(reply))
        finally:
            mx.clear_streams()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told[0], "between two steps, speech runs where it ran before"
    assert answer(greedy(model), [user("hello")]).endswith(str(told[1]))
