"""What secures a connection, made from the settings for each Kafka client, and kept out of every message.

A secret is read where a client is made, not where settings are loaded: a settings file can be checked on a
machine that does not have the mounted secrets, and a secret that was renewed is used from the next connection on.
"""

import contextlib
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kafka.net.sasl.oauth import AbstractTokenProvider

from streaming.brokers.tokens import TokenSource
from streaming.config import KafkaSettings
from streaming.errors import BrokerError

_SECRETS = ("sasl_password", "oauth_client_secret", "ssl_key_password")


def secret(settings: KafkaSettings, name: str) -> str | None:
    """A secret, from the setting of that name or from the file that `<name>_file` names; none where neither is set.

    Raises:
        BrokerError: the file cannot be read, or the secret is empty.
    """
    value = getattr(settings, name)
    path: Path | None = getattr(settings, f"{name}_file")
    if path is not None:
        source, text = f"{name}_file", read_secret_file(f"{name}_file", path)
    elif value is not None:
        source, text = name, value.get_secret_value()
    else:
        return None
    if not text:
        raise BrokerError(f"kafka.{source} is empty; expected a secret")
    return text


def read_secret_file(name: str, path: Path) -> str:
    """Text of a mounted file, without the newline that editors and `kubectl` leave at its end."""
    with _readable(name, path):
        return path.read_text(encoding="utf-8").rstrip("\r\n")


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The TLS configuration, the same one for a probe and for kafka-python; none without TLS.

    Raises:
        BrokerError: a file is missing, is no PEM file, or does not fit its key or password.
    """
    if not settings.uses_tls:
        return None
    context = authority("ssl_cafile", settings.ssl_cafile)
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile and settings.ssl_keyfile:
        for name, path in (("ssl_certfile", settings.ssl_certfile), ("ssl_keyfile", settings.ssl_keyfile)):
            with _readable(name, path):
                path.read_bytes()
        password = secret(settings, "ssl_key_password") or ""
        source = "ssl_key_password_file" if settings.ssl_key_password_file else "ssl_key_password"
        try:  # a password must be given even where there is none: OpenSSL would ask the terminal for one
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=lambda: password)
        except (ssl.SSLError, ValueError) as error:
            raise BrokerError(
                f"kafka.ssl_certfile={str(settings.ssl_certfile)!r} and kafka.ssl_keyfile="
                f"{str(settings.ssl_keyfile)!r} cannot be used: {error}; expected PEM files of a certificate and its "
                f"private key, and kafka.{source} where that key is encrypted"
            ) from None
    return context


def authority(name: str, path: Path | None) -> ssl.SSLContext:
    """A client's TLS context that trusts the authorities in a PEM file; the system's, if there is none."""
    if path is None:
        return ssl.create_default_context()
    with _readable(name, path):
        path.read_bytes()
    try:
        return ssl.create_default_context(cafile=str(path))
    except ssl.SSLError as error:
        raise BrokerError(
            f"kafka.{name}={str(path)!r} cannot be used: {error}; expected PEM certificates"
        ) from None


def token_source(settings: KafkaSettings) -> TokenSource:
    """Where OAUTHBEARER tokens come from; the settings say OAUTHBEARER.

    Raises:
        BrokerError: a file cannot be read.
    """
    if settings.oauth_token_file is not None:
        path = settings.oauth_token_file
        return TokenSource.from_file(lambda: read_secret_file("oauth_token_file", path))
    assert settings.oauth_token_url is not None
    assert settings.oauth_client_id is not None
    return TokenSource.from_endpoint(
        settings.oauth_token_url,
        settings.oauth_client_id,
        lambda: secret(settings, "oauth_client_secret") or "",
        settings.oauth_scope,
        authority("oauth_cafile", settings.oauth_cafile),
        timeout_s=min(10.0, settings.request_timeout_s),
    )


def kafka_python_security(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments for every kafka-python client.

    Raises:
        BrokerError: something that the settings name is missing or does not fit.
    """
    config: dict[str, Any] = {
        "security_protocol": settings.security_protocol,
        "ssl_context": tls_context(settings),
        "ssl_check_hostname": settings.ssl_check_hostname,
    }
    if settings.uses_sasl:
        keep_credentials_out_of_logs()
        config["sasl_mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            config["sasl_oauth_token_provider"] = _Provider(token_source(settings))
        else:
            config["sasl_plain_username"] = settings.sasl_username
            config["sasl_plain_password"] = _Unprintable(secret(settings, "sasl_password"))
    return config


def librdkafka_security(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration of librdkafka that means the same; see its CONFIGURATION.md.

    Raises:
        BrokerError: something that the settings name is missing or does not fit.
    """
    tls_context(settings)  # its complaints name the settings; librdkafka's name its own
    config: dict[str, Any] = {"security.protocol": settings.security_protocol}
    if settings.uses_tls:
        files = {
            "ssl.ca.location": settings.ssl_cafile,
            "ssl.certificate.location": settings.ssl_certfile,
            "ssl.key.location": settings.ssl_keyfile,
        }
        config |= {name: str(path) for name, path in files.items() if path is not None}
        config["ssl.endpoint.identification.algorithm"] = "https" if settings.ssl_check_hostname else "none"
        password = secret(settings, "ssl_key_password")
        if password is not None:
            config["ssl.key.password"] = password
    if settings.uses_sasl:
        config["sasl.mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            source = token_source(settings)
            config["oauth_cb"] = lambda _: (source.token(), source.expires_at())
        else:
            config["sasl.username"] = settings.sasl_username
            config["sasl.password"] = secret(settings, "sasl_password")
    return config


def credentials_advice(settings: KafkaSettings) -> str:
    """Which settings the broker judged when it refused to let us in."""
    if settings.sasl_mechanism != "OAUTHBEARER":
        named = "sasl_password_file" if settings.sasl_password_file else "sasl_password"
        return (
            f"check kafka.sasl_username={settings.sasl_username!r}, {named} and "
            f"sasl_mechanism={settings.sasl_mechanism}"
        )
    origin = (
        "oauth_token_file"
        if settings.oauth_token_file
        else "oauth_token_url, oauth_client_id and oauth_scope"
    )
    return f"the broker did not accept the token; check kafka.{origin}"


def scrubbed(settings: KafkaSettings, text: str) -> str:
    """A message of somebody else's with our secrets blotted out, should it repeat one."""
    for name in _SECRETS:
        with contextlib.suppress(BrokerError):  # a secret that cannot be read cannot be repeated
            value = secret(settings, name)
            if value:
                text = text.replace(value, "***")
    return text


class _Unprintable(str):
    """A secret that does not show where kafka-python logs the whole of its configuration."""

    def __repr__(self) -> str:
        return "'***'"


class _Provider(AbstractTokenProvider):  # type: ignore[misc]
    """Hands tokens to kafka-python, one call per connection."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        return self._source.token()


@contextlib.contextmanager
def _readable(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BrokerError(
            f"kafka.{name}={str(path)!r} cannot be read: {error.strerror}; expected a file that this process may read"
        ) from None
    except UnicodeDecodeError:
        raise BrokerError(f"kafka.{name}={str(path)!r} is not UTF-8 text; expected a secret") from None


def _without_credentials(record: logging.LogRecord) -> bool:
    """Keep out what kafka-python prints of its requests: those of authentication, and all as bytes on the wire."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(
        isinstance(argument, bytes | bytearray | memoryview) or type(argument).__name__.startswith("Sasl")
        for argument in arguments
    )


def keep_credentials_out_of_logs() -> None:
    """kafka-python logs every request at level DEBUG, also those that carry a password or token."""
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logging.getLogger(name).addFilter(_without_credentials)  # adding it again changes nothing
