"""The settings of a quickstart are its flags."""

from __future__ import annotations

import dataclasses

import pytest

from grit_jax.cli.main import build_parser
from grit_jax.quickstart.settings import PretrainedSettings, QuickstartSettings


def test_each_setting_is_a_flag_with_the_same_default():
    args = vars(build_parser().parse_args(["quickstart"]))
    flags = {key: args[key] for key in args.keys() - {"verb", "parser", "out", "json"}}
    assert flags == dataclasses.asdict(QuickstartSettings()) | {"base": None}
    assert dataclasses.asdict(PretrainedSettings("m")).keys() == flags.keys() - {"from_scratch"}


@pytest.mark.parametrize(
    "settings, small",
    [({}, False), ({"seed": 3, "from_scratch": True}, False), ({"steps": 5}, True)]
    + [({"documents": 400}, True)],
)
def test_a_small_one_has_fewer_documents_or_steps(settings, small):
    assert QuickstartSettings(**settings).is_small is small
