"""What the operator may show to a Prometheus: a token and a certificate authority out of a Secret beside it, or its own
token. Read anew for every look, so that what is exchanged counts at once.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from gpupack.errors import Unavailable
from gpupack.kube.api import Api, ApiError, NotFound
from gpupack.kube.source_resource import PrometheusServer

TOKEN_KEY, AUTHORITY_KEY = "token", "ca.crt"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
USUAL_NAMESPACE = "gpupack-system"
FORBIDDEN = 403


def own_namespace() -> str:
    """The operator's; outside a cluster the one that it is usually installed in."""
    try:
        return NAMESPACE_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return USUAL_NAMESPACE


async def token_and_authority(api: Api, server: PrometheusServer) -> tuple[str | None, str | None]:
    """Bearer token and PEM text, each None if none is to be shown. Raises Unavailable with what to do."""
    token = await api.token() if server.own_token else None
    if server.secret is None:
        return token, None
    name = f"Secret {own_namespace()}/{server.secret}"
    try:
        secret = await api.get(f"/api/v1/namespaces/{own_namespace()}/secrets/{server.secret}")
    except NotFound:
        raise Unavailable(f"There is no {name}. Create it with the key {TOKEN_KEY} or {AUTHORITY_KEY}.") from None
    except ApiError as refused:
        if refused.status != FORBIDDEN:
            raise
        raise Unavailable(
            f"The operator may not read {name}. Name it gpupack-prometheus, or add its name to prometheus.secretNames "
            "of the chart."
        ) from None
    data = secret.get("data") or {}
    if not {TOKEN_KEY, AUTHORITY_KEY} & data.keys():
        raise Unavailable(f"{name} has neither {TOKEN_KEY} nor {AUTHORITY_KEY}. Write at least one of them into it.")
    if token is not None and TOKEN_KEY in data:
        raise Unavailable(f"{name} has a {TOKEN_KEY}, and spec.metrics.prometheus asks for the operator's. Drop one.")
    try:
        texts = {key: base64.b64decode(data[key]).decode().strip() for key in (TOKEN_KEY, AUTHORITY_KEY) if key in data}
    except (binascii.Error, UnicodeDecodeError):
        raise Unavailable(f"{name} holds what is no text. Write {TOKEN_KEY} and {AUTHORITY_KEY} anew.") from None
    if not texts.get(TOKEN_KEY, "").isprintable() or " " in texts.get(TOKEN_KEY, ""):
        raise Unavailable(f"The {TOKEN_KEY} of {name} is no bearer token: there are spaces in it. Write it anew.")
    return texts.get(TOKEN_KEY, token), texts.get(AUTHORITY_KEY)
