"""Bounds on what pruning changes, recomputed from the weights and the data; NumPy and SciPy only.

`importance` and `coresets` are those of sampled weights and neurons (paper 001), `labels`, `last_layer` and
`propagation` say what an error means for the output and its labels, `exchangeable` what samples alone say of new ones;
`closeness` and `laws` are about masks (paper 004), `clipping` and `signal_noise` about DP-SGD (paper 002), `laplace`
about a pruned layer as noise (paper 000), `phase` about the samples that a sparse neuron takes (paper 003).
"""
