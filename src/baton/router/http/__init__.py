"""HTTP/1.1 on asyncio's protocols: a server, pooled connections to other servers, routes.

httptools parses; what is here is only what a proxy does with it. Nothing in this package knows of
workers or tokens, and one request costs it no task but the handler's own.
Elsewhere: what is answered (router/app.py), what is asked of workers (router/legs.py).
"""
