"""Prune the layers of a PyTorch model, fine-tune what is left, save and verify it: ``import nettrim.torch as ntt``."""

from importlib.util import find_spec

from nettrim.extras import install

if find_spec("torch") is None:
    raise ImportError(f"nettrim.torch needs PyTorch: {install('torch')}")

from nettrim.torch.allocation import allocate
from nettrim.torch.capture import arguments_of
from nettrim.torch.finetune import finetune, keep_zeros
from nettrim.torch.planning import plan
from nettrim.torch.pruned import PrunedModel
from nettrim.torch.pruning import prune
from nettrim.torch.semi_structured import semi_structured
from nettrim.torch.shrink import Shrunk, shrink
from nettrim.torch.store import latency, load, sizes
from nettrim.torch.verify import Verified, verify

__all__ = [
    "PrunedModel",
    "Shrunk",
    "Verified",
    "allocate",
    "arguments_of",
    "finetune",
    "keep_zeros",
    "latency",
    "load",
    "plan",
    "prune",
    "semi_structured",
    "shrink",
    "sizes",
    "verify",
]
