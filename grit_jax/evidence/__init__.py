"""The claims behind GRIT, small and repeatable: models trained from one base on the same examples,
and what differs.

`joint.py`: does training both tasks together cost either of them? `cached.py`: do answers over
cached documents need training for it? Both are runs of `grit train` with the configurations in
`recipes/`.
"""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "run_evidence": "run",
    },
)
