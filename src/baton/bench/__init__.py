"""What runs in this process, measured: kernels against torch's, the engine against other engines.

Elsewhere: load on a server, over HTTP (serve/); interference of prompts and streams (benchmarks/).
"""
