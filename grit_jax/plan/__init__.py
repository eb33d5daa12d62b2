"""Ahead-of-time compilation: what a configuration needs on a TPU slice, from the TPU's compiler,
without a TPU."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CompiledProgram": "plan",
        "Plan": "plan",
        "compile_program": "plan",
        "make_plan": "plan",
        "make_serving_plan": "serving",
        "parse_topology": "chips",
        "search_settings": "search",
        "step_flops": "flops",
    },
)
