"""What networks give away of their data, as attacks measure it, and training that bounds it; needs PyTorch.

`layers` and `inversion` look for the image behind a representation, `images` says how near it is and whether the attack
was strong enough to conclude anything, `membership` tells members of the training set from others, and `iterative`
prunes as the networks of paper 000 are pruned. `dp_sgd` trains privately, dense networks and pruned ones, `accountant`
says what that has spent, and `landscape` measures losses between networks. An attack that fails proves nothing about a
better one.
"""

from importlib.util import find_spec

from nettrim.extras import install

if find_spec("torch") is None:
    raise ImportError(f"nettrim.privacy needs PyTorch: {install('privacy')}")
