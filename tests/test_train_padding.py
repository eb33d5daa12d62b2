"""What fills the padding of a batch does not change a run."""

from __future__ import annotations

import json

import pytest
import yaml
from training_run import trace, write_run

from grit_jax.text.tokenizer import Tokenizer
from grit_jax.train import read_run_config, train


@pytest.mark.slow  # two training runs
def test_pad_as_eos_and_no_pad_give_the_same_loss_trace(tmp_path, sentences, tiny_tokenizer):
    """A padding token that is the end of sequence must not hide real ends from the loss."""
    write_run(tmp_path, sentences)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for key in ("cached", "cached_batch", "document_max_length"):
        del config["data"][key]
    config["train"] = {"steps": 3}
    traces = {}
    for name, pad in (("own", tiny_tokenizer.pad_token), ("eos", "</s>"), ("none", None)):
        folder = tmp_path / name
        tiny_tokenizer.save(folder)
        file = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(file | {"pad_token": pad}))
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.pad_token == pad
        assert (tokenizer.pad_id == tokenizer.eos_id) == (name != "own")
        run = config | {"tokenizer": {"path": name}, "output": f"run-{name}"}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(run))
        train(read_run_config(path))
        traces[name] = trace(tmp_path / f"run-{name}")
    assert len(traces["own"]) == 3 and traces["own"][0]["loss_gen"] > 0
    assert traces["own"] == traces["eos"] == traces["none"]
