"""Eight virtual CPU devices for every test, before JAX starts its backend, and
one folder for all workers, before they start."""

import os

# Threads of JAX's CPU client, read when it starts. By default there is one a
# device, and collectives that wait for each other can block them all.
os.environ.setdefault("NPROC", "64")

import jax

from tests import shared

shared.folder()
jax.config.update("jax_num_cpu_devices", 8)
