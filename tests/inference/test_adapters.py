"""Adapters beside a model's weights equal the merged models, alone and in company."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from golden_models import raises
from lora_folders import write_folders

from grit_jax.inference import layer_weights
from grit_jax.inference.adapters import with_adapters
from grit_jax.inference.adjustments import Adjustments
from grit_jax.inference.model import GritLM
from grit_jax.inference.record_loader import Layered
from grit_jax.inference.requests import EmbedRequest, GenerateRequest, LabelRequest, ScoreRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.models.adapter_stack import AdapterStack
from grit_jax.models.hf.safetensors_io import Tensor, write_shard
from grit_jax.runtime.files import write_file
from grit_jax.sharding import MeshConfig, make_mesh

NEW = 10
PAST_ENDS = Sampling(max_new_tokens=NEW, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    return write_folders(tiny_model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def models(folders, tiny_model):
    """The model itself and the merged ones, in the order of the adapters."""
    return [tiny_model, folders.merged["red"], folders.merged["blue"]]


@pytest.fixture(scope="module")
def model(folders, tiny_model) -> GritLM:
    return with_adapters(tiny_model, folders.adapters)


def test_each_is_the_merged_model(model, models, sentences):
    """Vectors, answers, formats and the hash of the weights."""
    answers = []
    for own, merged in zip([model, *model.adapters], models, strict=True):
        np.testing.assert_allclose(
            own.encode(sentences[:5]), merged.encode(sentences[:5]), atol=2e-5
        )
        answers.append(own.generate(sentences[:2], max_new_tokens=NEW))
        assert answers[-1] == merged.generate(sentences[:2], max_new_tokens=NEW)
        assert own.weights_hash == merged.weights_hash
        assert (own.pooling, own.mode, own.chat) == (merged.pooling, merged.mode, merged.chat)
        assert set(own.stop_ids) == set(merged.stop_ids)
    assert answers[0] != answers[1] != answers[2] != answers[0]


@pytest.fixture(scope="module")
def prompts(models, sentences) -> list[list[int]]:
    """One prompt in the format of each model."""
    return [other.prompt_ids([sentences[3]])[0] for other in models]


@pytest.fixture(scope="module")
def expected(models, prompts) -> list[list[int]]:
    """The answers of the merged models."""
    return [
        other.generate_ids([prompt], sampling=PAST_ENDS).tokens[0]
        for other, prompt in zip(models, prompts, strict=True)
    ]


@pytest.fixture(scope="module")
def engine(model, expected):
    """An engine in which a token of the first adapter's answer ends its answers."""
    red = model.adapters[0]
    before, red.stop_ids = red.stop_ids, (*red.stop_ids, expected[1][4])
    with model.engine(slots=3, context=128, adjustable=True) as engine:
        red.stop_ids = before
        yield engine


def test_answers_and_vectors_in_common_batches(engine, model, models, prompts, expected, sentences):
    """Alone and in company; nothing is compiled for an adapter."""
    texts = [other.encoder.format(sentences[:3]) for other in models]
    vectors = [other.encode(sentences[:3]) for other in models]

    def ask(adapters):
        answers = [
            engine.submit(GenerateRequest(prompts[i], (), PAST_ENDS, adapter=i)) for i in adapters
        ]
        embedded = [
            engine.submit(EmbedRequest(texts[i].ids, [texts[i].pool_start] * 3, adapter=i))
            for i in adapters
        ]
        for i, answer, pending in zip(adapters, answers, embedded, strict=True):
            assert answer.result().tokens == expected[i]
            np.testing.assert_allclose(pending.result(), vectors[i], atol=2e-5)

    ask([0])
    ask([2])  # pools differently: another program
    compiled = engine.stats().compilations
    ask([1])
    assert engine.stats().compilations == compiled
    ask((0, 2, 1, 2, 0))
    with raises("there is no adapter 3; the model has 2"):
        engine.submit(GenerateRequest(prompts[0], (), PAST_ENDS, adapter=3))


@pytest.mark.slow
def test_weights_in_separate_arrays(monkeypatch, model, models, prompts, expected, sentences):
    """As a larger model's are on a CPU, over a record that is loaded layer by layer, too."""
    monkeypatch.setattr(layer_weights, "SMALLEST", 0)
    assert layer_weights.separate_layers(model.params) is not None
    record = model.adapters[1].encode(sentences[:1], return_cache=True).caches[0]
    request = lambda i, *records: GenerateRequest(prompts[i], records, PAST_ENDS, adapter=i)
    over = models[2].generate_ids([prompts[2]], records=[[record]], sampling=PAST_ENDS)
    own = model.adapters[1].generate_ids([prompts[2]], records=[[record]], sampling=PAST_ENDS)
    assert own.tokens == over.tokens  # shares the base's arrays with the others, not its factors
    with model.engine(slots=3, context=128) as engine:
        asked = [engine.submit(request(i)) for i in range(3)]
        last = engine.submit(request(2, Layered(record)))
        assert [pending.result().tokens for pending in asked] == expected
        assert last.result().tokens == over.tokens[0]


@pytest.mark.slow
def test_scores_and_labels(engine, models, prompts):
    asked = [
        (
            engine.submit(ScoreRequest(prompts[i], 2, adapter=i)),
            engine.submit(LabelRequest([prompts[i]], [5, 9], adapter=i)),
        )
        for i in range(3)
    ]
    for other, prompt, (score, label) in zip(models, prompts, asked, strict=True):
        logits = np.asarray(other([prompt]).logits)[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = [logprobs[place - 1, prompt[place]] for place in range(2, len(prompt))]
        np.testing.assert_allclose(score.result(), expected, atol=5e-5)
        np.testing.assert_allclose(label.result()[0], logprobs[-1, [5, 9]], atol=5e-5)


@pytest.mark.slow
def test_over_records(engine, models, prompts, sentences):
    """An adapter answers over the records that its own weights have made."""
    for number, (merged, prompt) in enumerate(zip(models, prompts, strict=True)):
        record = merged.encode(sentences[:1], return_cache=True).caches[0]
        expected = merged.generate_ids([prompt], records=[[record]], sampling=PAST_ENDS).tokens[0]
        for form in (record, Layered(record)):
            request = GenerateRequest(prompt, [form], PAST_ENDS, adapter=number)
            assert engine.submit(request).result().tokens == expected


def test_ends_of_sequence_are_the_adapters_own(engine, prompts, expected):
    """A token, made the most likely one, ends the answers of one adapter and not those of others."""
    stop = expected[1][4]
    forced = Sampling(NEW, adjustments=Adjustments(logit_bias=((stop, 100.0),)))
    asked = [engine.submit(GenerateRequest(prompts[i], (), forced, adapter=i)) for i in range(3)]
    base, red, blue = (pending.result() for pending in asked)
    assert (red.tokens, red.finished) == ([], "stop")
    assert base.tokens == blue.tokens == [stop] * NEW


@pytest.mark.slow
def test_an_int8_base(folders, sentences):
    """The factors are added to the quantised weights, as close as quantisation leaves the model
    itself."""
    base = GritLM.from_pretrained(folders.base, dtype="int8")
    model = with_adapters(base, folders.adapters)
    assert model.dtype == "int8" and model.weights_hash == base.weights_hash
    own, exact = model.adapters[0], folders.merged["red"]
    assert own.weights_hash == exact.weights_hash
    cosine = (own.encode(sentences[:4]) * exact.encode(sentences[:4])).sum(axis=1)
    plain = (base.encode(sentences[:4]) * exact.encode(sentences[:4])).sum(axis=1)
    assert cosine.min() > 0.99 > plain.max()


@pytest.mark.slow  # compiles for eight simulated devices
def test_on_several_devices(folders, models, prompts, expected, sentences):
    """Slots on two shards, weights and factors on four devices each: the same answers."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = with_adapters(GritLM.from_pretrained(folders.base, mesh=mesh), folders.adapters)
    factors = [weight.a for weight in model.params.values() if isinstance(weight, AdapterStack)]
    assert all(not factor.sharding.is_fully_replicated for factor in factors)
    texts = [other.encoder.format(sentences[:3]) for other in models]
    with model.engine(slots=4, context=128) as engine:
        answers = [
            engine.submit(GenerateRequest(prompts[i], (), PAST_ENDS, adapter=i))
            for i in (0, 2, 1, 2)
        ]
        vectors = [
            engine.submit(EmbedRequest(texts[i].ids, [texts[i].pool_start] * 3, adapter=i))
            for i in range(3)
        ]
        for i, answer in zip((0, 2, 1, 2), answers, strict=True):
            assert answer.result().tokens == expected[i]
        for i, other in enumerate(models):
            np.testing.assert_allclose(vectors[i].result(), other.encode(sentences[:3]), atol=2e-5)


def test_an_adapter_of_the_package_has_a_name(tiny_model):
    """It is found, and fits another model only."""
    with raises("tensors"), pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        with_adapters(tiny_model, {"grit": "smollm2-grit"})


def test_a_directory_of_pefts_own(folders, tiny_model, tmp_path, sentences):
    """Without our files it embeds and answers in the base's format."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folders.adapters["red"] / name, tmp_path / name)
    red = with_adapters(tiny_model, {"red": tmp_path}).adapters[0]
    np.testing.assert_allclose(
        red.encode(sentences[:2]), folders.merged["red"].encode(sentences[:2]), atol=2e-5
    )


def test_what_cannot_be_added(folders, tiny_model, tmp_path):
    with raises("adapter x: ", "no such folder; expected one that PEFT opens"):
        with_adapters(tiny_model, {"x": tmp_path / "none"})
    copy = tmp_path / "copy"
    shutil.copytree(folders.adapters["red"], copy)
    settings = json.loads((copy / "grit.json").read_text())
    change = lambda **more: (copy / "grit.json").write_text(json.dumps(settings | more))
    change(generation_mode="prefix")
    with raises("it reads prompts in mode prefix, the model in mode causal"):
        with_adapters(tiny_model, {"x": copy})
    change(chat_format="later")
    with raises("chat format 'later' is unknown"):
        with_adapters(tiny_model, {"x": copy})
    change(base_weights="12ab")
    with pytest.warns(UserWarning, match="trained on other weights .12ab."):
        model = with_adapters(tiny_model, {"x": copy})
    with raises("a model with adapters beside its weights cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    change(projection="2_Dense")
    dense, width = copy / "2_Dense", tiny_model.config.hidden_size
    dense.mkdir()
    (dense / "config.json").write_text(
        json.dumps({"in_features": width, "out_features": 4, "bias": False})
    )
    weight = Tensor("linear.weight", (4, width), lambda: np.ones((4, width), np.float32))
    with write_file(dense / "model.safetensors") as file:
        write_shard(file, [weight], "float32")
    with raises("it has a projection of its own"):
        with_adapters(tiny_model, {"x": copy})
