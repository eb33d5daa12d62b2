"""Prompts and scores of the GRIT paper's six generative evaluations, for the files in `lm_tasks/`.

The paper ran open-instruct (MMLU, GSM8K, BBH, TyDi QA, AlpacaEval) and the bigcode harness
(HumanEvalSynthesize), each with its chat format: a question is one turn of the user, and the answer
begins as the task says. So the tasks are meant for `--apply-chat-template`. lm-eval's own tasks of
the same names have other prompts, and other numbers.

Examples of GSM8K and BBH are read from the task files that come with lm-eval.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import random
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.evaluation.code_execution import IMPORTS, run_all
from grit_jax.runtime.progress import say
from grit_jax.text.answer_matching import score_answer

SEED = 42  # open-instruct's
GSM8K_QUESTIONS, BBH_QUESTIONS, TYDIQA_QUESTIONS = 200, 40, 100
TYDIQA_TOKENS = 512  # of a passage
LETTERS = "ABCD"
# Where an answer in Python ends: the bigcode harness's strings.
CODE_ENDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert")
TEST_SECONDS = 10.0  # of one program

Doc = Mapping[str, Any]
CutText = Callable[[str, int], str]
_cut: contextvars.ContextVar[CutText | None] = contextvars.ContextVar("cut", default=None)


@contextlib.contextmanager
def passages_cut_by(cut: CutText) -> Iterator[None]:
    """Lets TyDi QA cut its passages to a number of the model's tokens, with `cut(text, tokens)`."""
    token = _cut.set(cut)
    try:
        yield
    finally:
        _cut.reset(token)


def exact_match(answer: str, expected: str) -> float:
    """1 if they are equal but for case and ASCII punctuation, else 0.

    >>> exact_match("(A).", "(a)"), exact_match("12", "1")
    (1.0, 0.0)
    """
    plain = lambda text: text.lower().translate(str.maketrans("", "", string.punctuation))
    return float(plain(answer) == plain(expected))


# MMLU.


def mmlu_prompt(doc: Doc) -> str:
    """The question and its four answers, without examples. The two blanks are the original's."""
    subject = " ".join(["", *doc["subject"].split("_")])
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, doc["choices"], strict=True)]
    return (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        + "\n".join([doc["question"], *lines, "Answer:"])
    )


# GSM8K.


def gsm8k_docs(dataset: Any) -> Any:
    """The 200 questions that open-instruct's seed draws from the test set."""
    return _drawn(dataset, GSM8K_QUESTIONS)


def gsm8k_prompt(doc: Doc) -> str:
    """Eight worked examples and the question."""
    return (
        "Answer the following questions.\n\n"
        + "\n\n".join(_gsm8k_examples())
        + f"\n\nQuestion: {doc['question'].strip()}"
    )


def gsm8k_target(doc: Doc) -> str:
    """The number after `####`, without separators of thousands."""
    return _without_separators(doc["answer"].split("####")[1].strip())


def gsm8k_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Whether the last number of the answer is the expected one."""
    numbers = re.findall(r"[-+]?\d*\.\d+|\d+", _without_separators(results[0]))
    answer = numbers[-1] if numbers else results[0]
    return {"exact_match": exact_match(answer, gsm8k_target(doc))}


@functools.cache
def _gsm8k_examples() -> list[str]:
    samples = _lm_eval_file("gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]
    worked = [
        (s["question"], s["target"].replace("The answer is", "So the answer is")) for s in samples
    ]
    return [f"Question: {question}\nAnswer: {answer}" for question, answer in worked]


def _without_separators(text: str) -> str:
    return re.sub(r"(\d),(\d)", r"\1\2", text)


# BBH.


def __getattr__(name: str) -> Callable[[Doc], str]:
    """`bbh_prompt_NAME`: the prompt of a task of BBH, whose documents do not name it."""
    if not name.startswith("bbh_prompt_"):
        raise AttributeError(name)
    return functools.partial(_bbh_prompt, name.removeprefix("bbh_prompt_"))


def bbh_docs(dataset: Any) -> Any:
    """40 questions of a task. Which ones the paper had depends on the order of files on a disk."""
    return _drawn(dataset, BBH_QUESTIONS)


def _bbh_prompt(task: str, doc: Doc) -> str:
    """Three worked examples and the question."""
    return f"{_bbh_examples(task)}\n\nQ: {doc['input']}"


def bbh_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Whether what follows "the answer is", up to a full stop, is the expected answer."""
    match = re.search(r"[tT]he answer is (.*?)\.", results[0])
    answer = match.group(1) if match else results[0]
    return {"exact_match": exact_match(answer.strip(), doc["target"])}


@functools.cache
def _bbh_examples(task: str) -> str:
    config = _lm_eval_file(f"bbh/cot_fewshot/{task}.yaml")
    worked = [
        f"Q: {sample['input']}\nA: Let's think step by step.\n{sample['target']}"
        for sample in config["fewshot_config"]["samples"]
    ]
    return "\n\n".join([config["description"].strip(), *worked])


# TyDi QA.


def tydiqa_data(path: str, name: str, **metadata: Any) -> dict[str, Any]:
    """100 questions of each language with their gold passages, and one example of the language from
    the training set, as open-instruct's seed draws them.

    Args:
      path, name: of the data set, as `datasets.load_dataset` takes them.
    """
    import datasets

    splits = datasets.load_dataset(path, name)
    languages = [row_id.split("-")[0] for row_id in splits["validation"]["id"]]
    draw = random.Random(SEED)
    chosen: list[int] = []
    for language in sorted(set(languages)):
        rows = [i for i, other in enumerate(languages) if other == language]
        chosen += draw.sample(rows, TYDIQA_QUESTIONS) if len(rows) > TYDIQA_QUESTIONS else rows
    train = [row_id.split("-")[0] for row_id in splits["train"]["id"]]
    examples = {}
    for language in sorted(set(languages)):
        rows = [i for i, other in enumerate(train) if other == language]
        if not rows:
            raise GritError(f"tydiqa: the training set has no example in {language}")
        examples[language] = splits["train"][draw.sample(rows, 1)[0]]
    docs = [_tydiqa_doc(splits["validation"][i], languages[i], examples) for i in chosen]
    return {"test": datasets.Dataset.from_list(docs)}


def _tydiqa_doc(row: Doc, language: str, examples: Mapping[str, Doc]) -> dict[str, Any]:
    words = _tydiqa_words().get(language)
    if words is None:
        raise GritError(f"tydiqa: there is no prompt for the language {language!r:.40}")
    example = examples[language]
    asked = lambda doc: (
        f"{words['passage']} {_cut_passage(doc['context'])}\n"
        f"{words['question']} {doc['question']}\n"
    )
    shown = asked(example) + f"{words['answer']} {example['answers']['text'][0]}"
    return {
        "id": row["id"],
        "language": language,
        "prompt": f"{words['instruction']}\n\n{shown}\n\n{asked(row)}",
        "answer_tag": words["answer"],
        "answers": list(row["answers"]["text"]),
    }


def tydiqa_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """SQuAD's F1 and exact match with the best of the answers."""
    scores = [score_answer(results[0].strip(), answer) for answer in doc["answers"]]
    return {
        "f1": max(score.f1 for score in scores),
        "exact_match": max(score.exact_match for score in scores),
    }


def _cut_passage(text: str) -> str:
    cut = _cut.get()
    if cut is None:
        _say_once("tydiqa: passages are whole; only grit eval lm cuts them to 512 tokens")
        return text
    return cut(text, TYDIQA_TOKENS)


@functools.cache
def _tydiqa_words() -> dict[str, dict[str, str]]:
    path = Path(__file__).parent / "lm_tasks" / "tydiqa_words.json"
    return json.loads(path.read_text(encoding="utf-8"))


# HumanEvalSynthesize, Python.


def humaneval_code(completion: str, doc: Doc) -> str:
    """The function: its beginning, and of the completion what belongs to it."""
    for end in CODE_ENDS:
        completion = completion.split(end)[0]
    lines = completion.rstrip().split("\n")
    for number, line in enumerate(lines):
        if line.strip() and line[0] not in " \t":
            lines = lines[:number]
            break
    return (doc["prompt"].rstrip() + "\n".join(lines)).rstrip()


def humaneval_all_answers(answers: Sequence[Sequence[str]], docs: Any) -> list[Sequence[str]]:
    """lm-eval's filter that keeps all answers to a question."""
    return list(answers)


def humaneval_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of the answers that pass the tests: what pass@1 estimates."""
    programs = [
        f"{IMPORTS}\n{humaneval_code(completion, doc)}\n\n{doc['test']}"
        for completion in results[0]
    ]
    return {"pass@1": sum(run_all(programs, TEST_SECONDS)) / len(programs)}


# AlpacaEval.


def alpaca_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Characters of the answer; AlpacaEval itself compares answers, with a judge."""
    return {"characters": float(len(results[0]))}


def alpaca_outputs(samples: Sequence[Doc], generator: str) -> list[dict[str, str]]:
    """Answers in the form of AlpacaEval's `model_outputs` files.

    Args:
      samples: of lm-eval's results.
      generator: the name of the model.
    """
    return [
        {
            "dataset": sample["doc"].get("dataset", ""),
            "instruction": sample["doc"]["instruction"],
            "output": sample["filtered_resps"][0],
            "generator": generator,
        }
        for sample in samples
    ]


def _drawn(dataset: Any, number: int) -> Any:
    """So many rows, drawn with open-instruct's seed; all where there are no more."""
    if len(dataset) <= number:
        return dataset
    return dataset.select(random.Random(SEED).sample(range(len(dataset)), number))


def _lm_eval_file(name: str) -> dict[str, Any]:
    """A task file of lm-eval.

    Raises:
      GritError: this version of lm-eval has no such file.
    """
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / name
    if not path.is_file():
        raise GritError(f"lm-eval has no file tasks/{name}, which has the examples of the prompt")
    return load_yaml(path, resolve_func=False, recursive=False)


@functools.cache
def _say_once(text: str) -> None:
    say(text)
