"""Which server, region and credentials s3:// and gs:// mean here: what the environment and the tools' own files say."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

_CREDENTIALS_LAST = timedelta(minutes=10)  # botocore renews them earlier than that


def aws_settings(bucket: str) -> tuple[dict[str, Any], Callable[[], dict[str, Any]] | None]:
    """Where a bucket is and with which credentials, found as the AWS tools find them; without any, it is public.

    Raises:
        ValueError: the files of these tools are wrong, or lack the profile that is asked for.
    """
    import botocore.exceptions  # type: ignore[import-untyped]
    import botocore.session  # type: ignore[import-untyped]

    session = botocore.session.get_session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        endpoint = endpoint or session.get_scoped_config().get("endpoint_url")
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise ValueError(str(error)) from error
    settings: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        settings["endpoint"] = endpoint
    else:
        settings["region"] = bucket_region(f"https://{bucket}.s3.amazonaws.com") or settings["region"]
    if credentials is None:
        return {**settings, "skip_signature": True}, None

    def provide() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }

    return settings, provide


def bucket_region(url: str) -> str | None:
    """The region that AWS names in any answer about a bucket, refusals included; None if there is no answer."""
    import requests

    try:
        region = requests.head(url, timeout=5, allow_redirects=False).headers.get("x-amz-bucket-region")
    except requests.RequestException:
        return None
    return region


def google_settings() -> dict[str, Any]:
    """The server, if another one is named; no signature, where nothing says with which credentials."""
    server = os.environ.get("GOOGLE_BASE_URL") or os.environ.get("STORAGE_EMULATOR_HOST")
    settings: dict[str, Any] = {"base_url": server} if server else {}
    return settings if _has_google_credentials() else {**settings, "skip_signature": True}


def _has_google_credentials() -> bool:
    names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
    if any(os.environ.get(name) for name in (*names, "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN")):
        return True
    if (Path.home() / ".config/gcloud/application_default_credentials.json").is_file():
        return True
    try:
        return bool(socket.getaddrinfo("metadata.google.internal", 80))  # known inside of Google's network only
    except OSError:
        return False
