"""vLLM's NixlConnector, fit for an engine that has one core.

As it is, it spoils such an engine in two ways: NIXL's progress thread, whose delay its Python
wrapper sets to 0, keeps the core busy once two engines are connected; and the worker's main thread,
which computes, is moved to the machine's last core, which is the other engine's. vLLM loads this
module by `kv_connector_module_path`. Elsewhere: the engines (serve_vllm_pd.py).
"""

import os
from typing import Any, Final

import nixl_cu12._api  # type: ignore[import-not-found]
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import (  # type: ignore[import-not-found]
    NixlPullConnector,
)

_PROGRESS_DELAY_US: Final = 1000

_AgentConfig = nixl_cu12._api.nixlBind.nixlAgentConfig


class _RestingConfig(_AgentConfig):  # type: ignore[misc, valid-type]
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _PROGRESS_DELAY_US if name == "pthrDelay" else value)


nixl_cu12._api.nixlBind.nixlAgentConfig = _RestingConfig


class NixlConnector(NixlPullConnector):  # type: ignore[misc]
    """Leaves its worker on the cores that it has."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any):
        cores = os.sched_getaffinity(0)
        super().__init__(vllm_config, role, kv_cache_config)
        os.sched_setaffinity(0, cores)
