"""Training room: losses, the joint step, the loop and its checkpoints."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Checkpoints": "checkpoint",
        "LossConfig": "losses",
        "OptimizerConfig": "optimizer",
        "StepConfig": "joint",
        "TrainState": "state",
        "contrastive_loss": "contrastive",
        "init_state": "state",
        "joint_gradient": "gradients",
        "joint_loss": "joint",
        "language_loss": "language",
        "make_optimizer": "optimizer",
        "make_schedule": "optimizer",
        "make_step": "step",
        "run_loop": "loop",
    },
)
