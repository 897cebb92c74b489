"""InstructGPT in JAX: SFT, a reward model, PPO with pretraining gradients."""

__version__ = "0.1.0"
