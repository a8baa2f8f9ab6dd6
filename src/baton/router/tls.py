"""TLS of both sides, from files: what clients are shown, and whom the router trusts as a worker.

Invariant: a context that exists works; every refusal names flag, file and reason, and nobody is
ever asked for a passphrase.
Elsewhere: bytes (http/server.py, http/client.py), flags (launch/router.py).
"""

import ssl
from dataclasses import dataclass

from baton.core.errors import ConfigError

_HTTP = ["http/1.1"]


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files. `key` None: it is in the certificate's file. `worker_cas` empty: the
    system's. `client_*`: shown to workers that ask who calls."""

    certificate: str | None = None
    key: str | None = None
    worker_cas: tuple[str, ...] = ()
    client_certificate: str | None = None
    client_key: str | None = None

    def __post_init__(self) -> None:
        for flag, key, certificate in (
            ("--ssl-keyfile", self.key, self.certificate),
            ("--client-key-path", self.client_key, self.client_certificate),
        ):
            if key is not None and certificate is None:
                beside = flag.replace("key-", "cert-").replace("keyfile", "certfile")
                raise ConfigError(f"{flag} {key} is a key without a certificate; give {beside}")


def context_for_clients(files: TlsFiles) -> ssl.SSLContext | None:
    """None: clients come over plain HTTP. Raises ConfigError."""
    if files.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(_HTTP)
    _show(context, "--ssl-certfile", files.certificate, files.key)
    return context


def context_for_workers(files: TlsFiles) -> ssl.SSLContext | None:
    """None: what the system trusts, made when the first https worker is called. Raises
    ConfigError."""
    if not files.worker_cas and files.client_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not files.worker_cas:
        context.load_default_certs()
    for path in files.worker_cas:
        try:
            context.load_verify_locations(path)
        except OSError as error:
            raise ConfigError(f"--ca-cert-paths {path} {_reason(error)}") from error
    context.set_alpn_protocols(_HTTP)
    if files.client_certificate is not None:
        _show(context, "--client-cert-path", files.client_certificate, files.client_key)
    return context


def _show(context: ssl.SSLContext, flag: str, certificate: str, key: str | None) -> None:
    shown = f"{flag} {certificate}" + ("" if key is None else f" with key {key}")
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_passphrase(shown))
    except OSError as error:
        raise ConfigError(f"{shown} {_reason(error)}") from error


def _refuse_passphrase(shown: str) -> str:
    raise ConfigError(
        f"{shown}: the key has a passphrase; remove it with: openssl pkey -in KEY -out PLAIN"
    )


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot be used: {error.reason or 'it is no PEM file of the kind'}"
    return f"cannot be read: {error.strerror or error}"
