"""Fused element-wise passes, one definition per device (installed as ``nettrim.kernels``)."""
