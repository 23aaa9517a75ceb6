from setuptools import setup
setup(name="nettrim",version="0.1.0",packages=["nettrim","nettrim.backends","nettrim.kernels"],package_dir={"nettrim":"nettrim","nettrim.kernels":"kernels"})
