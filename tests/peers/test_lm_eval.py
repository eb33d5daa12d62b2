"""lm-eval, unmodified: our model's numbers are those of its own `hf` model on the same weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from grit_jax.evaluation.harness import RunSettings, harness_model, plain_results, run_tasks
from grit_jax.evaluation.harness_backend import LocalBackend
from grit_jax.evaluation.harness_tasks import TaskChoice
from grit_jax.inference.sampling import Sampling

pytestmark = pytest.mark.peers
MAX_LENGTH = 96


@pytest.fixture(scope="module")
def models(peer):
    """lm-eval's model and ours, which read at most `MAX_LENGTH` tokens."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(
        pretrained=peer.model,
        tokenizer=peer.tokenizer,
        max_length=MAX_LENGTH,
        batch_size=3,
        backend="causal",
    )
    return theirs, harness_model(LocalBackend(peer.ours, "tiny", MAX_LENGTH))


def instances(kind: str, arguments):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=i)
        for i, given in enumerate(arguments)
    ]


def test_loglikelihood(models, texts, peer):
    """Spaces on either side of the boundary, no context, a context that is cut, choices that share
    all but their last token, special tokens, and what greedy decoding writes."""
    theirs, ours = models
    pairs = [
        *zip(texts, [" lantern", "meadow orbit", " 0123 (yes)!"] * 6),
        ("Amber river ", "stone"),
        ("", " The quiet engine"),
        ("", "<s>amber"),
        ("<s>Amber river", " stone"),
        ("Amber river</s>", " stone"),
        ("amber " * 200, " stone window"),
        *((texts[1], f" {letter}") for letter in "ABCD"),
    ]
    requests = instances("loglikelihood", pairs)
    with pytest.warns(UserWarning, match="lost their beginning: .* longer than 96 tokens"):
        found = ours.loglikelihood(requests)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], atol=2e-4)
    assert [g for _, g in found] == [g for _, g in expected]
    context = ours.tok_encode(texts[0])
    greedy = peer.ours.generate_ids([context], sampling=Sampling(4, ignore_eos=True)).tokens[0]
    tokens = [(None, context, ids) for ids in (greedy, [*greedy[:-1], greedy[-1] ^ 1], greedy[:1])]
    found = ours._loglikelihood_tokens(tokens)
    expected = theirs._loglikelihood_tokens(tokens, disable_tqdm=True)
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], atol=2e-4)
    assert [g for _, g in found] == [g for _, g in expected] == [True, False, True]


def test_loglikelihood_rolling(models, texts):
    """Windows of a text longer than the model reads; one that fits; one token; nothing."""
    theirs, ours = models
    requests = instances("loglikelihood_rolling", [*((t,) for t in texts), ("amber " * 300,)])
    found = ours.loglikelihood_rolling(requests)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(set(found)) == len(found)


def test_generate_until(models, texts):
    """Greedy answers, up to a string where they are to end; prompts longer than their room lose
    their beginning."""
    theirs, ours = models
    prompts = [*texts[:4], "amber " * 200]
    settings = {"until": ["\u2603never"], "max_gen_toks": 12, "do_sample": False}
    requests = instances("generate_until", [(text, settings) for text in prompts])
    with pytest.warns(UserWarning, match="1 of 5 prompts"):
        whole = ours.generate_until(requests)
    # One at a time: its batches are cut to the longest prompt's room.
    assert whole == [t for r in requests for t in theirs.generate_until([r], disable_tqdm=True)]
    stop = whole[0][3:6]
    settings = {"until": [stop, "\u2603"], "max_gen_toks": 12, "temperature": 0.0}
    requests = instances("generate_until", [(text, settings) for text in prompts[:4]])
    cut = ours.generate_until(requests)
    assert cut == [text.split(stop)[0] for text in whole[:4]] and cut[0] != whole[0]
    assert cut == theirs.generate_until(requests, disable_tqdm=True)


def test_sampling_is_repeatable_and_differs_between_requests(peer):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    requests = instances("generate_until", [("Amber river", settings)] * 4)
    answers = [
        harness_model(LocalBackend(peer.ours, "tiny"), seed=seed).generate_until(requests)
        for seed in (0, 0, 7)
    ]
    assert answers[0] == answers[1] != answers[2] and len(set(answers[0])) > 1


def test_chat_template(models):
    """Conversations are rendered as by transformers, and so are beginnings of answers."""
    theirs, ours = models
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Amber?"},
        {"role": "assistant", "content": "River."},
        {"role": "user", "content": "Stone?"},
    ]
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "The answer is:"}]
    expected = theirs.apply_chat_template(begun, add_generation_prompt=False)
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == expected
    assert expected.endswith("The answer is:")
    assert ours.tok_encode(expected) == theirs.tok_encode(expected)


TASK_FILES = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "fewshot_split": "train",
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences):
    """A folder of three tasks over local files."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, start in (("train", 0), ("test", 20)):
        rows = [
            {
                "question": text,
                "choices": text.strip(".").split()[:3] or ["x"],
                "answer": 0,
            }
            for text in sentences[start : start + 8]
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    for name, config in TASK_FILES.items():
        common = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | config))
    return folder


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_run_of_tasks(models, folder, peer, chat, tmp_path):
    """The same results as lm-eval's own run with its own model, and its own results files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    theirs, _ = models
    names = sorted(f"local_{name}" for name in TASK_FILES)
    few = {"num_fewshot": None, "limit": 5}
    expected = lm_eval.simple_evaluate(
        theirs,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=chat,
        torch_random_seed=None,
        bootstrap_iters=100000,
        **few,
    )
    backend = LocalBackend(peer.ours, "org/tiny", MAX_LENGTH)
    found = run_tasks(
        backend,
        TaskChoice([str(folder)]),
        RunSettings(apply_chat_template=chat, log_samples=True, **few),
        tmp_path / "out",
    )
    assert found["results"].keys() == expected["results"].keys() == set(names)
    for name in names:
        for metric, value in expected["results"][name].items():
            if isinstance(value, float):
                np.testing.assert_allclose(
                    found["results"][name][metric], value, rtol=1e-4, err_msg=metric
                )
    assert found["n-samples"] == expected["n-samples"]
    written = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert written["model_name"] == "org/tiny" and set(written["results"]) == set(names)
    assert len(list((tmp_path / "out").rglob("samples_local_*.jsonl"))) == 3
    assert plain_results(found)["results"].keys() == set(names)
