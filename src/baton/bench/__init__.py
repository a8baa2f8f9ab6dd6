"""What runs in this process, measured: kernels against torch's, the engine against other engines.

Interference, goodput and anything else over HTTP is measured from outside (benchmarks/).
"""
