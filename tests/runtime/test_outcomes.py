"""What processes report of their end reaches each other without a barrier."""

from __future__ import annotations

import pytest
from block_runs import finish

PROGRAM = """
import time
import jax
from grit_jax.runtime import outcomes
from grit_jax.runtime.hosts import join_hosts

join_hosts()
first, second = outcomes.Outcomes(), outcomes.Outcomes()
if first.number:
    assert first.of(0) is None
    time.sleep(0.5 * first.number)
    second.report(f"of {first.number}")
    print("heard", first.wait(0))
else:
    assert second.of(1) is None
    second.wait_for_others()
    print("reports", second.of(1), second.of(2), second.wait(2), first.of(1))
    first.report("all")
"""


@pytest.mark.multiprocess
def test_reports_reach_the_other_processes(tmp_path):
    zero, *others = finish(tmp_path, [], 3, program=PROGRAM)
    assert "reports of 1 of 2 of 2 None" in zero
    assert all("heard all" in log for log in others)
