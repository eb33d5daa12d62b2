"""The claims behind GRIT, small and repeatable: models trained from one base on the same examples,
and what differs.

`joint.py`: does training both tasks together cost either of them? `cached.py`: do answers over
cached documents need training for it? Both are runs of `grit train` with the configurations in
`recipes/`. `pretrained.py` asks the same of a pretrained model, and what caches, compression and
instructions cost a trained one.
"""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PretrainedOptions": "pretrained_run",
        "run_evidence": "run",
        "run_pretrained_evidence": "pretrained",
    },
)
