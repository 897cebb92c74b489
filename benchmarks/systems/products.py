"""What several systems have of their library: a product of matrices, a norm."""


def in_jax(m: int, k: int, n: int):
  """A function that computes [m, k] x [k, n] once."""
  import jax  # pylint: disable=g-import-not-at-top
  import jax.numpy as jnp  # pylint: disable=g-import-not-at-top

  a, b = jnp.ones((m, k)), jnp.ones((k, n))
  product = jax.jit(jnp.matmul)
  return lambda: product(a, b).block_until_ready()


def in_torch(m: int, k: int, n: int):
  """The same in PyTorch."""
  import torch  # pylint: disable=g-import-not-at-top

  a, b = torch.ones(m, k), torch.ones(k, n)
  return lambda: torch.mm(a, b)


def torch_norm(tensors) -> float:
  """The global norm of PyTorch tensors, summed in float64: its own sums
  float32 squares in an order that loses a thousandth of a large one."""
  return sum(x.double().square().sum().item() for x in tensors) ** 0.5
