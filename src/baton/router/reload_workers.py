"""Workers that the operator added to the configuration, or took out of it.

Who is taken out drains and is then forgotten, unless it announces itself: then it goes on as a
worker that came by itself. Workers added by POST /workers are no part of it, and stay.
Elsewhere: reading the configuration anew (reload.py), announcements (announcements.py).
"""

from collections.abc import Callable

from baton.router.config import RouterConfig, WorkerSpec
from baton.router.fleet import Fleet
from baton.router.workers import Drainer


class ConfiguredWorkers:
    """`is_leased`: whether the worker at a URL announces itself."""

    def __init__(self, config: RouterConfig, fleet: Fleet, is_leased: Callable[[str], bool]):
        self._specs = config.workers
        self._fleet = fleet
        self._is_leased = is_leased

    def prepare(self, config: RouterConfig) -> Callable[[], None]:
        return lambda: self._become(config.workers)

    def _become(self, specs: tuple[WorkerSpec, ...]) -> None:
        old, self._specs = self._specs, specs
        kept = {spec.url for spec in specs}
        for spec in old:
            if spec.url not in kept:
                self._drop(spec)
        for spec in specs:
            if spec not in old:
                self._take(spec)

    def _drop(self, spec: WorkerSpec) -> None:
        worker = self._fleet.pool.find(spec.url)
        if worker is None:
            return
        if self._is_leased(spec.url):
            worker.is_announced = True
        else:
            self._fleet.retire(worker)

    def _take(self, spec: WorkerSpec) -> None:
        """One that is there already is kept with all that is known of it, if it is the same."""
        worker = self._fleet.pool.find(spec.url)
        if worker is not None and worker.role is spec.role:
            self._fleet.drain(worker, Drainer.CONFIGURATION, False)
            worker.is_announced = False
            worker.spec = spec
            return
        if worker is not None:
            self._fleet.forget(worker)
        self._fleet.join(spec)
