"""What lm-eval asks of a model in this process. That its numbers are those of lm-eval's own model is
tested in tests/peers/test_lm_eval.py."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.harness_backend import LocalBackend, TextRequest, cut_before, open_ended
from grit_jax.inference.sampling import Sampling

NOBODY = lambda count: None


@pytest.fixture(scope="module")
def backend(tiny_model) -> LocalBackend:
    return LocalBackend(tiny_model, "tiny")


def test_the_beginning_of_sequence_is_added_once(backend, tiny_model):
    tokenizer = tiny_model.tokenizer
    plain = tokenizer.encode("Amber river")
    begin = [tokenizer.bos_id] if tokenizer.added_around()[0] else []
    assert backend.encode("Amber river") == [*begin, *plain]
    assert backend.encode("Amber river", add_special_tokens=False) == plain
    spelled = backend.encode("<s>Amber river")
    assert spelled[0] == backend.prefix_id == tokenizer.bos_id and spelled.count(spelled[0]) == 1
    assert backend.eos_text == "</s>" and backend.encode("a</s>")[-1] == backend.eos_id


def test_conversations(backend):
    turns = [{"role": "user", "content": "Amber?"}]
    assert backend.render(turns, add_generation_prompt=True) == (
        "<s><|user|>\nAmber?\n<|assistant|>\n"
    )
    turns.append({"role": "assistant", "content": "The answer is:"})
    assert backend.render(turns, add_generation_prompt=False).endswith(
        "<|assistant|>\nThe answer is:"
    )
    assert "message['role']" in backend.template


def test_the_beginning_of_an_answer_must_stay_as_it_is():
    assert open_ended("<a>x </a>", "x ") == "<a>x "
    assert open_ended("<a>x</a>", "x ") == "<a>x"
    with pytest.raises(GritError, match="changes the beginning of the answer 'Answer:'"):
        open_ended("<a>answer:</a>", "Answer:")


def test_answers_end_before_a_string(backend, tiny_model, sentences):
    """Each answer in its place, whatever the order in which they end."""
    prompts = [backend.encode(text) for text in sentences[:5]]
    tokens = tiny_model.generate_ids(prompts, sampling=Sampling(10)).tokens
    whole = [tiny_model.tokenizer.decode(ids) for ids in tokens]
    stop = whole[1][2:5]
    done = []
    requests = [TextRequest(ids, Sampling(10), ["", stop, "\u2603"]) for ids in prompts]
    assert backend.generate(requests, done.append) == [cut_before(t, [stop]) for t in whole]
    assert sum(done) == 5
    assert backend.generate([TextRequest(ids, Sampling(10)) for ids in prompts], NOBODY) == whole
    assert backend.generate([], NOBODY) == []


def test_a_length_beyond_the_context(tiny_model):
    with pytest.raises(GritError, match="--max-length 1000000: this model's context is"):
        LocalBackend(tiny_model, "tiny", 10**6)
