"""What an iteration over the workers of a cluster costs: flops, bytes on the wire, messages one after the other.

An iteration asks the workers twice. The step F, N x M, goes down the tree and squared norms come up; the factors of the
projection go down and X T^T, N x M, comes up. So each worker gets one N x M matrix and sends one, whatever P is.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """Of an iteration without a check or an adaptation.

    Parameters
    ----------
    N, M, P : int
        Inputs, outputs, samples.
    workers : int
        Each with as many of the samples.
    itemsize : int
        Bytes of a number in the working dtype.
    """

    N: int
    M: int
    P: int
    workers: int
    itemsize: int = 4

    @property
    def worker_flops(self) -> float:
        """Of each worker: its samples, there and back."""
        return 4.0 * self.N * self.M * self.P / self.workers

    @property
    def client_flops(self) -> float:
        """Of the linear system, in float64."""
        return 2.0 * self.N**2 * self.M

    @property
    def weights(self) -> int:
        """Bytes of an N x M matrix."""
        return self.N * self.M * self.itemsize

    @property
    def sent(self) -> int:
        """Bytes on the wire, of all machines together."""
        # F and X T^T; the factors and the squared norms
        return self.workers * (2 * self.weights + self.M * self.itemsize + 8 * self.M)

    @property
    def depth(self) -> int:
        """Messages one after the other until the last worker is asked."""
        return 1 + (self.workers - 1).bit_length()

    def seconds(self, flops: float, latency: float, bandwidth: float, client_flops: float | None = None) -> float:
        """Expected time.

        Parameters
        ----------
        flops : float
            Of a worker, a second.
        latency : float
            Seconds from a question without data to its answer.
        bandwidth : float
            Bytes a second between two machines.
        client_flops : float, optional
            Of the client; default as a worker's.
        """
        arithmetic = self.worker_flops / flops + self.client_flops / (client_flops or flops)
        return arithmetic + 2 * self.depth * latency + 2 * self.depth * self.weights / bandwidth
