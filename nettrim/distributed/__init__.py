"""Layers and samples over the workers of a Dask cluster: extra ``dask``.

`solve` cuts one layer's samples into shards, `solve_neurons` its neurons into blocks; `nettrim.prune` and
`nettrim.torch.prune` send whole layers. Dask pickles what its processes send each other: whoever can reach a scheduler
can run code on its workers. Checkpoints and layers in files are never unpickled.
"""

from nettrim.distributed.cluster import connect
from nettrim.distributed.neurons import solve_neurons
from nettrim.distributed.problem import ShardedProblem, solve

__all__ = ["ShardedProblem", "connect", "solve", "solve_neurons"]
