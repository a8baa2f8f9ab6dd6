"""vLLM's NixlConnector, which leaves an engine on the cores that it was given.

As it is, it moves the worker's main thread, which computes, to the machine's last core; with one
core for each engine, both would compute on that one. vLLM loads this module by
`kv_connector_module_path`. Left as shipped: NIXL's progress thread, which keeps its core busy once
the engines are connected. With a delay (1 ms, 0.1 ms) prompts were computed in half the time, but
streams stood still for a second whenever a long prompt's KV arrived.
Elsewhere: the engines (serve_vllm_pd.py).
"""

import os
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl import (  # type: ignore[import-not-found]
    NixlPullConnector,
)


class NixlConnector(NixlPullConnector):  # type: ignore[misc]
    """By the name that vLLM looks for."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any):
        cores = os.sched_getaffinity(0)
        super().__init__(vllm_config, role, kv_cache_config)
        os.sched_setaffinity(0, cores)
