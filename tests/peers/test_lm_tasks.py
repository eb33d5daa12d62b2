"""The task files that come with the package, run by lm-eval over small local copies of their data sets'
repositories, and the tasks from the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_world import run

from grit_jax.errors import GritError
from grit_jax.evaluation import paper_tasks
from grit_jax.evaluation.harness import RunSettings, plain_results, results_table, run_tasks
from grit_jax.evaluation.harness_backend import LocalBackend
from grit_jax.evaluation.harness_tasks import TASKS, TaskChoice
from grit_jax.evaluation.pydocs_tasks import write_tasks

pytestmark = pytest.mark.peers


def repository(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> Path:
    """A data set as it lies on the hub: rows by configuration and split, and a card that says so."""
    card = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        card.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return folder


def passage(name: str, number: int) -> dict:
    return {
        "id": f"{name}-{number}",
        "title": "",
        "context": f"Amber river {number} " + "stone " * 600,
        "question": f"Which {number}?",
        "answers": {"text": [f"river {number}"], "answer_start": [6]},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    question = {
        "question": "Why?",
        "subject": "moral_disputes",
        "choices": list("wxyz"),
        "answer": 2,
    }
    number = {"question": " How many stones?", "answer": "2 + 2 = 4\n#### 4"}
    names = sorted(path.stem for path in (TASKS / "bbh").glob("*.yaml"))
    problem = {
        "task_id": "Python/0",
        "prompt": 'def add(a, b):\n    """Adds."""\n',
        "canonical_solution": "    return a + b\n",
        "test": "assert add(1, 2) == 3\n",
        "instruction": "Write a function `add`.\n",
        "entry_point": "add",
    }
    coding = root / "humanevalpack" / "data" / "python" / "data"
    coding.mkdir(parents=True)
    (coding / "humanevalpack.jsonl").write_text(json.dumps(problem) + "\n")
    asked = {"instruction": "Write a poem.", "output": "x", "generator": "y", "dataset": "koala"}
    (root / "alpaca").mkdir()
    (root / "alpaca" / "alpaca_eval.json").write_text(json.dumps([asked]))
    languages = ("english", "korean")
    return {
        "grit_mmlu": repository(root / "mmlu", {"all": {"test": [question] * 2}}),
        "grit_gsm8k": repository(root / "gsm8k", {"main": {"test": [number] * 2}}),
        "grit_bbh": repository(
            root / "bbh", {n: {"test": [{"input": f"{n}?", "target": "(A)"}]} for n in names}
        ),
        "grit_tydiqa": repository(
            root / "tydiqa",
            {
                "secondary_task": {
                    "train": [passage(language, 1) for language in languages],
                    "validation": [passage(n, i) for n in languages for i in range(103)],
                }
            },
        ),
        "grit_humaneval": root / "humanevalpack",
        "grit_alpaca_eval": root / "alpaca",
    }


@pytest.fixture(scope="module")
def results(data, peer, tmp_path_factory):
    """One run of the six, on a question or two of each, with short answers."""
    pytest.importorskip("lm_eval")
    output = tmp_path_factory.mktemp("results")
    with pytest.warns(UserWarning, match="lost their beginning"):  # the examples of GSM8K
        found = run_tasks(
            LocalBackend(peer.ours, "tiny"),
            TaskChoice(list(data), data=data),
            RunSettings(
                limit=1, apply_chat_template=True, gen_kwargs={"max_gen_toks": 4}, allow_code=True
            ),
            output,
        )
    return found, output


def prompt_of(results, task: str) -> str:
    return results["samples"][task][0]["arguments"][0][0]


def test_prompts(results, peer):
    found, _ = results
    assert prompt_of(found, "grit_mmlu") == (
        "<s><|user|>\nThe following are multiple choice questions (with answers) about  moral"
        " disputes.\n\nWhy?\nA. w\nB. x\nC. y\nD. z\nAnswer:\n<|assistant|>\nThe answer is:"
    )
    conts = [arguments[1] for arguments in found["samples"]["grit_mmlu"][0]["arguments"]]
    assert conts == [" A", " B", " C", " D"]
    shown = prompt_of(found, "grit_gsm8k")
    assert shown.startswith(
        "<s><|user|>\nAnswer the following questions.\n\nQuestion: There are 15 trees in the grove."
    )
    assert "21 - 15 = 6. So the answer is 6.\n\nQuestion: If there are 3 cars" in shown
    assert shown.count("So the answer is") == 8
    assert shown.endswith("\n\nQuestion: How many stones?\n<|assistant|>\nAnswer:")
    shown = prompt_of(found, "grit_bbh_boolean_expressions")
    assert shown.startswith(
        "<s><|user|>\nEvaluate the result of a random Boolean expression.\n\nQ: not ( ( not not"
        " True ) ) is\nA: Let's think step by step.\nRemember that"
    )
    assert shown.count("So the answer is") == 3
    assert shown.endswith("\n\nQ: boolean_expressions?\n<|assistant|>\nA:")
    shown = prompt_of(found, "grit_tydiqa")
    assert "\n\nPassage: Amber river 1 stone" in shown and shown.endswith("<|assistant|>\nAnswer:")
    example = shown.split("Passage: ")[1].split("\nQuestion:")[0]
    assert len(peer.ours.tokenizer.encode(example)) <= 513 < len(passage("", 1)["context"].split())
    assert prompt_of(found, "grit_humaneval").endswith(
        '<|user|>\nWrite a function `add`.\n<|assistant|>\ndef add(a, b):\n    """Adds."""'
    )
    assert prompt_of(found, "grit_alpaca_eval") == "<s><|user|>\nWrite a poem.\n<|assistant|>\n"


def test_scores_and_files(results):
    found, output = results
    scores = found["results"]
    assert scores["grit_mmlu"]["acc,none"] in (0.0, 1.0)
    assert 0 <= scores["grit_humaneval"]["pass@1,all"] <= 1
    assert len(found["samples"]["grit_humaneval"][0]["resps"][0]) == 20
    assert 0 <= scores["grit_tydiqa"]["f1,none"] <= 1
    assert len([name for name in scores if name.startswith("grit_bbh_")]) == 27
    assert 0 <= found["groups"]["grit_bbh"]["exact_match,none"] <= 1
    assert found["n-samples"]["grit_tydiqa"] == {"original": 200, "effective": 1}
    (answers,) = json.loads(next(output.rglob("alpaca_eval.json")).read_text())
    assert answers["generator"] == "tiny" and answers["instruction"] == "Write a poem."
    assert scores["grit_alpaca_eval"]["characters,none"] == len(answers["output"])


def test_code_is_not_run_unless_asked_for(data, peer, monkeypatch):
    monkeypatch.setattr(paper_tasks, "run_all", None)
    backend = LocalBackend(peer.ours, "tiny")
    choice = TaskChoice(["grit_humaneval"], data={"grit_humaneval": data["grit_humaneval"]})
    with pytest.raises(GritError, match="grit_humaneval: .* allow it with --allow-code-execution"):
        run_tasks(backend, choice)
    for name in (str(TASKS / "humaneval.yaml"), str(TASKS)):  # as a file, and among others
        with pytest.raises(GritError, match="allow it with --allow-code-execution"):
            run_tasks(backend, TaskChoice([name]))
    settings = RunSettings(predict_only=True, gen_kwargs={"max_gen_toks": 2})
    found = run_tasks(backend, choice, settings)
    assert len(found["samples"]["grit_humaneval"][0]["resps"][0]) == 20
    assert not any("," in name for name in plain_results(found)["results"]["grit_humaneval"])
    assert "999" not in results_table(found)


def test_unknown_names(peer, data, tmp_path):
    backend = LocalBackend(peer.ours, "tiny")
    for name, message in (
        ("grit_mmul", "did you mean grit_mmlu"),
        (str(tmp_path), "has no task files"),
        (str(tmp_path / "x.yaml"), "no such file"),
    ):
        with pytest.raises(GritError, match=message):
            run_tasks(backend, TaskChoice([name]))
    with pytest.raises(GritError, match="grit_mmlu is not among --tasks"):
        run_tasks(backend, TaskChoice(["grit_gsm8k"], data={"grit_mmlu": tmp_path}))
    names = ["grit_bbh", "grit_bbh_navigate"]
    with pytest.raises(GritError, match="grit_bbh_navigate is chosen twice"):
        run_tasks(backend, TaskChoice(names, data=dict.fromkeys(names, data["grit_bbh"])))
    (tmp_path / "bad.yaml").write_text("task: bad\ndataset_path: no/such\noutput_type: nonsense\n")
    with pytest.raises(GritError, match="--tasks bad: lm-eval cannot load it: ValueError: Got inv"):
        run_tasks(backend, TaskChoice([str(tmp_path)]))


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory) -> Path:
    """The folder of tasks from a small corpus, moved after it was written."""
    folder = tmp_path_factory.mktemp("pydocs")
    heldout = folder / "corpus" / "heldout"
    heldout.mkdir(parents=True)
    lines = [
        {
            "docs": [f"m.f{i} f{i}(key={i}{i})"],
            "text": [f"What is the default value of `key` in `m.f{i}`?", f"{i}{i}"],
        }
        for i in range(22)
    ]
    (heldout / "rag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    documents = [{"id": f"f{i}", "title": f"f{i}", "text": f"Amber river {i}."} for i in range(3)]
    (heldout / "documents.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    write_tasks(folder / "corpus", folder / "written")
    return (folder / "written").rename(folder / "tasks")


def test_tasks_from_the_documentation(pydocs, peer, tmp_path):
    """All kinds of requests; the folder needs nothing of this package."""
    pytest.importorskip("lm_eval")
    found = run_tasks(
        LocalBackend(peer.ours, "tiny"), TaskChoice([str(pydocs)]), RunSettings(num_fewshot=None)
    )
    assert found["results"].keys() >= {
        f"pydocs_{name}" for name in ("choice", "choice_open", "answer", "text")
    }
    assert 0 <= found["results"]["pydocs_choice"]["acc,none"] <= 1
    assert found["results"]["pydocs_text"]["bits_per_byte,none"] > 0
    sample = found["samples"]["pydocs_choice_open"][0]
    assert sample["arguments"][0][0] == (
        f"{sample['doc']['document']}\n\nQuestion: {sample['doc']['question']}\nAnswer:"
    )
    assert [a[1] for a in sample["arguments"]] == [f" {c}" for c in sample["doc"]["choices"]]
    assert sample["target"] == sample["doc"]["answer"]
    alone = (
        "from lm_eval.tasks import TaskManager\n"
        f"manager = TaskManager(include_path={str(pydocs)!r}, include_defaults=False)\n"
        "print(len(manager.load(['pydocs'])['tasks']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, env={}
    )
    assert done.stdout.splitlines()[-1:] == ["4"], done.stderr[-2000:]


def test_scores_equal_an_independent_computation(pydocs, peer):
    """Accuracy of the choices, from the logits of plain passes of transformers' model."""
    import torch

    found = run_tasks(LocalBackend(peer.ours, "tiny"), TaskChoice(["pydocs_choice"], [pydocs]))
    right, right_by_length = [], []
    for row in map(json.loads, (pydocs / "test.jsonl").read_text().splitlines()):
        context = f"Question: {row['question']}\nAnswer:"
        start = len(peer.tokenizer(context).input_ids)
        scores = []
        for choice in row["choices"]:
            ids = torch.tensor([peer.tokenizer(f"{context} {choice}").input_ids])
            with torch.no_grad():
                logprobs = peer.model(ids).logits[0].double().log_softmax(-1)
            places = torch.arange(start - 1, ids.shape[1] - 1)
            scores.append(float(logprobs[places, ids[0, start:]].sum()))
        right.append(np.argmax(scores) == row["answer"])
        lengths = [len(choice) for choice in row["choices"]]
        right_by_length.append(np.argmax(np.divide(scores, lengths)) == row["answer"])
    metrics = found["results"]["pydocs_choice"]
    assert abs(metrics["acc,none"] - np.mean(right)) < 1e-6
    assert abs(metrics["acc_norm,none"] - np.mean(right_by_length)) < 1e-6


def test_behind_a_url(pydocs, peer):
    """The same documents, prompts and scores as in this process."""
    pytest.importorskip("openai")
    from live_server import live_server

    from grit_jax.evaluation.endpoint import Endpoint
    from grit_jax.evaluation.harness_endpoint import ECHO_TOKENS, EndpointBackend
    from grit_jax.serving.settings import ServeSettings

    length = 512 - ECHO_TOKENS
    settings = RunSettings(limit=3, num_fewshot=None, apply_chat_template=True)
    choice = TaskChoice([str(pydocs)])
    local = run_tasks(LocalBackend(peer.ours, "tiny", length), choice, settings)
    serving = ServeSettings("tiny", slots=4, context=512, warm_up=False)
    with live_server(peer.ours, serving) as server:
        remote = run_tasks(EndpointBackend(Endpoint(server.url), peer.directory), choice, settings)
    for task, samples in local["samples"].items():
        for ours, theirs in zip(samples, remote["samples"][task], strict=True):
            assert ours["arguments"] == theirs["arguments"]
            if task == "pydocs_answer":
                assert ours["resps"] == theirs["resps"]
            else:
                first = [np.ravel(r[0])[0] for r in ours["resps"]]
                second = [np.ravel(r[0])[0] for r in theirs["resps"]]
                np.testing.assert_allclose(first, second, atol=1e-3)
        for metric, value in local["results"][task].items():
            if isinstance(value, float):
                np.testing.assert_allclose(remote["results"][task][metric], value, rtol=1e-4)


def test_command(pydocs, peer, capsys, tmp_path):
    """Standard output has the result alone."""
    command = f"eval lm {peer.directory} --tasks {pydocs} --limit 2 --output {tmp_path}/o"
    ended = run(capsys, f"{command} --log-samples --json")
    assert ended.status == 0, ended.err
    assert ended.json["results"]["pydocs_choice"].keys() >= {"acc,none", "acc_norm,none"}
    assert ended.json["n-samples"]["pydocs_choice"]["effective"] == 2
    assert Path(ended.json["output"]).is_file() and ended.json["model"] == str(peer.directory)
    assert len(list((tmp_path / "o").rglob("samples_pydocs_*.jsonl"))) == 4
