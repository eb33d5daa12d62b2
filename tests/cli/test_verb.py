"""What each verb declares of itself is what its function is."""

from __future__ import annotations

import inspect

import pytest

from grit_jax.cli.main import VERBS, build_parser


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_function_takes_overrides_where_its_verb_says_so(verb):
    parameters = list(inspect.signature(verb.run).parameters)
    assert parameters == ["args", "arguments"][: 1 + verb.takes_overrides]


def test_which_verbs_continue_and_which_take_the_keys_of_a_configuration():
    """Those that keep what they have done, and those that read a YAML file."""
    names = lambda kind: {verb.name for verb in VERBS.values() if getattr(verb, kind)}
    assert names("resumable") == {"quickstart", "train", "encode", "index", "mine", "evidence"}
    assert names("takes_overrides") == {"train", "plan"} and names("supervised") == {
        "train",
        "encode",
        "index",
    }


def test_a_verb_with_overrides_has_a_configuration():
    for verb in (verb for verb in VERBS.values() if verb.takes_overrides):
        args, rest = build_parser().parse_known_args(
            [verb.name, "run.yaml", "--topology", "v5e:2x2", "--train.steps", "3"]
        )
        assert args.config.name == "run.yaml" and rest[-2:] == ["--train.steps", "3"]
