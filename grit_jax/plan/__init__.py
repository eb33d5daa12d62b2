"""Ahead-of-time compilation: what a configuration needs on a TPU slice, from the TPU's compiler,
without a TPU."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Plan": "plan",
        "ProgramPlan": "plan",
        "compile_program": "plan",
        "parse_topology": "chips",
        "plan_on": "plan",
        "step_flops": "flops",
    },
)
