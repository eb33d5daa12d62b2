"""Where tasks' documents come from; how names are found is in tests/peers/test_lm_eval.py."""

from __future__ import annotations

from pathlib import Path

from grit_jax.evaluation.harness_tasks import local_data


def test_a_local_copy_of_a_repository():
    """The folder takes the place of the repository's name, or of its files' addresses."""
    copy = Path("copies/mmlu")
    assert local_data({"dataset_path": "cais/mmlu"}, copy) == {"dataset_path": "copies/mmlu"}
    files = {"test": "hf://datasets/owner/name/data/x.jsonl", "train": "mine.jsonl"}
    options = {"data_files": files, "field": "rows"}
    found = local_data({"dataset_path": "json", "dataset_kwargs": options}, copy)
    assert found == {
        "dataset_kwargs": {
            "data_files": {"test": "copies/mmlu/data/x.jsonl", "train": "mine.jsonl"},
            "field": "rows",
        }
    }
    own = {"custom_dataset": print, "dataset_kwargs": {"path": "owner/name", "name": "part"}}
    assert local_data(own, copy) == {
        "dataset_kwargs": {"path": "copies/mmlu", "name": "part"},
    }
