"""The table of routes: a path, or a path with one parameter at its end, to a handler per method.

Elsewhere: the routes themselves (router/app.py).
"""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from baton.router.http.messages import Request, Response
from baton.router.http.stream import ResponseStream

Handler = Callable[[Request], Awaitable[Response | ResponseStream]]


class NoRoute(Exception):
    """Nothing is at the path."""


class NoMethod(Exception):
    """`allowed`: what the path takes instead."""

    def __init__(self, allowed: frozenset[str]):
        super().__init__(allowed)
        self.allowed = allowed


class Routes:
    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Handler]] = {}
        self._prefixes: list[tuple[str, str, bool, dict[str, Handler]]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """`path` may end in {name}, one segment, or {name:path}, at least one. GET takes HEAD."""
        methods = {method: handler, **({"HEAD": handler} if method == "GET" else {})}
        prefix, brace, parameter = path.partition("{")
        if not brace:
            self._exact.setdefault(path, {}).update(methods)
            return
        name, _, kind = parameter.rstrip("}").partition(":")
        for known, _, _, handlers in self._prefixes:
            if known == prefix:
                handlers.update(methods)
                return
        self._prefixes.append((prefix, name, kind == "path", methods))

    def find(self, request: Request) -> Handler:
        """The handler; sets the request's parameters. Raises NoRoute or NoMethod."""
        handlers: Mapping[str, Handler] | None = self._exact.get(request.path)
        if handlers is None:
            handlers = self._with_parameter(request)
        handler = handlers.get(request.method)
        if handler is None:
            raise NoMethod(frozenset(handlers))
        return handler

    def _with_parameter(self, request: Request) -> Mapping[str, Handler]:
        for prefix, name, takes_slashes, handlers in self._prefixes:
            rest = request.path.removeprefix(prefix)
            if rest and rest != request.path and (takes_slashes or "/" not in rest):
                request.parameters = {name: unquote(rest)}
                return handlers
        raise NoRoute
