"""The GRIT paper's six generative tasks: prompts, scores and settings that need no lm-eval. Whole runs
are in tests/peers/test_lm_tasks.py."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest
import yaml

from grit_jax.errors import GritError
from grit_jax.evaluation import paper_tasks
from grit_jax.evaluation.harness_tasks import TASKS


def task_file(name: str) -> dict:
    """A task file with its functions resolved, as lm-eval reads it."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, _, name = node.value.rpartition(".")
        return getattr(importlib.import_module(module), name)

    Loader.add_constructor("!function", function)
    path = TASKS / name
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if "include" in config:
        config = task_file(str(Path(name).parent / config.pop("include"))) | config
    return config


def test_task_files():
    """The paper's settings: examples, questions, tokens, temperature, answers."""
    files = {p.relative_to(TASKS).as_posix() for p in TASKS.rglob("*.yaml")}
    configs = {name: task_file(name) for name in files}
    tasks = {c["task"]: c for c in configs.values() if isinstance(c["task"], str)}
    assert len(tasks) == 5 + 27
    assert all(c["num_fewshot"] == 0 for c in tasks.values())  # they stand in the user's turn
    group = configs["bbh.yaml"]
    assert set(group["task"]) == {name for name in tasks if name.startswith("grit_bbh_")}
    assert group["aggregate_metric_list"][0]["weight_by_size"] is False
    tokens = {n: c.get("generation_kwargs", {}).get("max_gen_toks") for n, c in tasks.items()}
    assert tokens["grit_gsm8k"] == tokens["grit_bbh_navigate"] == 512
    assert tokens["grit_tydiqa"] == 50
    coding = tasks["grit_humaneval"]
    assert coding["repeats"] == 20 and coding["unsafe_code"] is True
    settings = coding["generation_kwargs"]
    assert (settings["temperature"], settings["top_p"], settings["do_sample"]) == (0.2, 0.95, True)
    assert tasks["grit_mmlu"]["gen_prefix"] == "The answer is:"


class Dataset(list):
    """As much of `datasets.Dataset` as is used."""

    def select(self, numbers):
        return Dataset(self[number] for number in numbers)


def test_questions_are_drawn_as_by_open_instruct():
    rows = list(range(1319))
    random.seed(42)
    assert paper_tasks.gsm8k_docs(Dataset(rows)) == random.sample(rows, 200)
    random.seed(42)
    assert paper_tasks.bbh_docs(Dataset(rows[:250])) == random.sample(rows[:250], 40)
    assert paper_tasks.bbh_docs(Dataset(rows[:40])) == rows[:40]


def test_mmlu_prompt():
    doc = {"subject": "high_school_physics", "question": "Why?", "choices": ["a", "b", "c", "d"]}
    assert paper_tasks.mmlu_prompt(doc) == (
        "The following are multiple choice questions (with answers) about  high school physics.\n\n"
        "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("So 3 + 4 = 7. So the answer is 1,234.", 1.0),
        ("1,234 and 5", 0.0),
        ("it is 1234.0", 0.0),
        ("nothing", 0.0),
    ],
)
def test_gsm8k_score(answer, score):
    doc = {"question": "How many?", "answer": "3 + 4 ...\n#### 1,234"}
    assert paper_tasks.gsm8k_results(doc, [answer]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Let's think. So the answer is (B). Q: more", 1.0),
        ("The answer is b.", 1.0),
        ("(b)", 1.0),
        ("So the answer is (A). No, the answer is (B).", 0.0),
    ],
)
def test_bbh_score(answer, score):
    assert paper_tasks.bbh_results({"target": "(B)"}, [answer]) == {"exact_match": score}


def test_tydiqa_prompt():
    row = lambda name: {
        "id": f"finnish-{name}",
        "context": f"passage {name} more",
        "question": f"asked {name}?",
        "answers": {"text": [f"answer {name}", "other"], "answer_start": [0, 1]},
    }
    first_two = lambda text, tokens: " ".join(text.split()[:2]) if tokens == 512 else text
    with paper_tasks.passages_cut_by(first_two):
        doc = paper_tasks._tydiqa_doc(row("x"), "finnish", {"finnish": row("y")})
    assert doc["prompt"] == (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.\n\n"
        "Kappale: passage y\nKysymys: asked y?\nVastaus: answer y\n\n"
        "Kappale: passage x\nKysymys: asked x?\n"
    )
    assert doc["answer_tag"] == "Vastaus:" and doc["answers"] == ["answer x", "other"]
    scores = paper_tasks.tydiqa_results(doc, [" the answer, X two\n"])
    assert scores == {"f1": pytest.approx(0.8), "exact_match": 0.0}
    with pytest.raises(GritError, match="no prompt for the language 'latin'"):
        paper_tasks._tydiqa_doc(row("x"), "latin", {"latin": row("y")})


PROBLEM = {
    "prompt": 'def add(a, b):\n    """Adds."""\n',
    "test": "def check(add):\n    assert add(1, 2) == 3\n\ncheck(add)\n",
}


def test_humaneval_code():
    for rest in ("\nadd(1, 2)", "\ndef other():\n    pass", "\nprint(1)", "\n```", ""):
        code = paper_tasks.humaneval_code("\n    x = a\n\n    return x + b\n" + rest, PROBLEM)
        assert code == 'def add(a, b):\n    """Adds."""\n    x = a\n\n    return x + b'


def test_humaneval_score():
    answers = [
        "\n    return a + b",
        "\n    return a - b",
        "\n    return math.fsum([a, b])",
        "\n    (",
    ]
    assert paper_tasks.humaneval_results(PROBLEM, [answers]) == {"pass@1": 0.5}


def test_alpaca_outputs():
    sample = {
        "doc": {"instruction": "Write.", "output": "theirs", "dataset": "koala"},
        "filtered_resps": ["ours"],
    }
    assert paper_tasks.alpaca_outputs([sample], "model") == [
        {"dataset": "koala", "instruction": "Write.", "output": "ours", "generator": "model"}
    ]
    assert paper_tasks.alpaca_results({}, ["ours"]) == {"characters": 4.0}


def test_an_unknown_function():
    with pytest.raises(AttributeError):
        getattr(paper_tasks, "bbh_prompts")  # noqa: B009
