"""The certificates that are trusted: the same for HTTP and the WebSocket."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl

from comfyui_runner.third_party import import_third_party


def certifi_bundle() -> str:
    """The file of certificate authorities that requests brings along: certifi's."""
    return str(import_third_party("requests.certs").where())


def make_ssl_context_for_http(ca_bundle: str) -> ssl.SSLContext:
    """make_ssl_context() for requests.

    urllib3 1.26 does not say to which IP address it connects, and then Python has nothing to
    compare the certificate with. It compares every name with the certificate itself.
    """
    compares_names_itself = import_third_party("urllib3").__version__.startswith("1.")
    return make_ssl_context(ca_bundle, not compares_names_itself)


@functools.lru_cache(maxsize=4)  # reading the files takes some 20 ms
def make_ssl_context(ca_bundle: str, check_hostname: bool = True) -> ssl.SSLContext:
    """Trusts the system's certificate authorities, certifi's, and those of ``ca_bundle``.

    requests alone would trust certifi's, and websockets the system's: a company's authority that is
    in the system's store only, and a public one that an old system lacks, must count for both.
    ``ca_bundle`` is a file or folder, "" for none. One that cannot be read is left out here: HTTP
    says what is wrong with it.
    """
    context = ssl.create_default_context()
    context.check_hostname = check_hostname
    context.load_verify_locations(certifi_bundle())
    with contextlib.suppress(OSError):
        if os.path.isdir(ca_bundle):
            context.load_verify_locations(capath=ca_bundle)
        elif ca_bundle:
            context.load_verify_locations(ca_bundle)

    # Python 3.13 refuses authorities without an Authority Key Identifier: many that people made
    # themselves have none. urllib3 does not refuse them either.
    strict = getattr(ssl, "VERIFY_X509_STRICT", 0)
    context.verify_flags &= ~strict
    return context
