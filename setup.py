"""Package layout; the metadata and the settings of the tools are in pyproject.toml.

The fused kernels live in kernels/, beside the package, one definition per device; they are installed as
``nettrim.kernels``, which only a package_dir can express.
"""

from setuptools import find_namespace_packages, setup


def packages(root: str) -> list[str]:
    """`root` and every folder in it: setuptools counts those that only hold data as packages too."""
    return find_namespace_packages(include=[root, f"{root}.*"], exclude=["*.__pycache__"])


setup(
    packages=packages("nettrim") + [f"nettrim.{name}" for name in packages("kernels")],
    package_dir={"nettrim": "nettrim", "nettrim.kernels": "kernels"},
    package_data={"": ["*.npz", "*.cu", "*.cuh", "py.typed"]},
)
