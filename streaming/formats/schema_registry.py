"""Schemas by number, from a registry that speaks Confluent's HTTP API (Karapace and Apicurio do as well).

Wire format: a zero byte, the schema's id as a big-endian 32-bit integer, then the Avro body
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format).

An id never changes its schema, so each is fetched once. An id that the registry does not know is the record's
fault; a registry that does not answer is not, and the record has to wait.
"""

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from streaming.config import AvroSettings
from streaming.errors import BrokerError
from streaming.formats.record import RecordError

_HEADER_BYTES = 5
_NOT_FOUND = 40403  # the API's own code: a proxy in between may say 404 for other reasons
_ASK_AGAIN_S = 60.0  # an id may be registered after its first record was seen
_UNKNOWN_MAX = 10_000  # ids remembered as unknown


class RegistryError(BrokerError):
    """The schema registry cannot be reached, or refused; the same records may be read later."""


class SchemaRegistry:
    """Finds the schema that a record names; one per source, used by one thread.

    Args:
        where: path of the Avro settings, for messages.
        settings: with a `registry_url`.
        parse: makes a usable schema of its JSON and the JSON of those it refers to, or raises ValueError.
    """

    def __init__(self, where: str, settings: AvroSettings, parse: Callable[[Any, list[Any]], Any]) -> None:
        given = httpx.URL(settings.registry_url or "")
        if given.scheme not in {"http", "https"} or not given.host:
            raise ValueError(
                f"{where}.registry_url: expected http(s)://host:port, got a {given.scheme!r} URL"
            )
        self._auth: tuple[str, str] | None = (given.username, given.password) if given.userinfo else None
        if settings.registry_username is not None:
            password = settings.registry_password
            self._auth = (settings.registry_username, password.get_secret_value() if password else "")
        self._url = str(given.copy_with(userinfo=b"")).rstrip("/")
        self._where, self._timeout_s, self._parse = where, settings.timeout_s, parse
        self._known: dict[int, Any] = {}
        self._unusable: dict[int, tuple[float, str]] = {}  # id -> when to ask again, reason

    def split(self, value: bytes) -> tuple[Any, int]:
        """Find a record's schema, and where its body begins.

        Raises:
            RecordError: it names no schema, or none that can be used.
            RegistryError: the registry cannot be asked.
        """
        if len(value) < _HEADER_BYTES or value[0] != 0:
            raise RecordError(
                f"expected a zero byte and the id of a schema ({self._where}.registry_url is set), "
                f"got {value[:_HEADER_BYTES]!r}"
            )
        number = int.from_bytes(value[1:_HEADER_BYTES], "big")
        if number not in self._known:
            self._find(number)
        return self._known[number], _HEADER_BYTES

    def _find(self, number: int) -> None:
        until, reason = self._unusable.get(number, (0.0, ""))
        if time.monotonic() < until:
            raise RecordError(reason)
        try:
            found = self._get(f"/schemas/ids/{number}", f"schema {number}")
            kind = found.get("schemaType", "AVRO")
            if kind != "AVRO":
                raise RecordError(f"schema {number} is of type {kind}, expected AVRO")
            self._known[number] = self._parse(_document(found), self._references(found))
        except RecordError as error:
            reason = str(error)
        except ValueError as error:
            reason = f"schema {number} cannot be used: {error}"
        else:
            return
        if len(self._unusable) >= _UNKNOWN_MAX:
            self._unusable.clear()
        self._unusable[number] = (time.monotonic() + _ASK_AGAIN_S, reason)
        raise RecordError(reason)

    def _references(self, found: dict[str, Any]) -> list[Any]:
        """The schemas that one refers to, each after those that it refers to itself."""
        ordered: dict[tuple[str, int], Any] = {}

        def collect(schema: dict[str, Any]) -> None:
            for reference in schema.get("references", ()):
                subject, version = reference["subject"], reference["version"]
                if (subject, version) not in ordered:
                    path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
                    referred = self._get(path, f"subject {subject!r}, version {version}")
                    collect(referred)
                    ordered[subject, version] = _document(referred)

        collect(found)
        return list(ordered.values())

    def _get(self, path: str, what: str) -> dict[str, Any]:
        try:
            answer = httpx.get(
                self._url + path,
                auth=self._auth,
                timeout=self._timeout_s,
                headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
            )
            body = answer.json() if answer.content else None
        except httpx.HTTPError as error:
            raise self._failed(what, f"{type(error).__name__}: {error}") from error
        except ValueError:
            body = None
        body = body if isinstance(body, dict) else {}
        if answer.status_code == 404 and body.get("error_code") in {_NOT_FOUND, 40401, 40402}:
            raise RecordError(f"the schema registry {self._url} does not know {what}")
        if answer.status_code in {401, 403}:
            raise self._failed(
                what, f"HTTP {answer.status_code}; check registry_username and registry_password"
            )
        if answer.status_code != 200 or "schema" not in body:
            raise self._failed(what, f"HTTP {answer.status_code}, which is not what a registry answers")
        return body

    def _failed(self, what: str, reason: str) -> RegistryError:
        return RegistryError(
            f"{self._where}.registry_url: {self._url} did not give {what} "
            f"(time-out {self._timeout_s:g} s): {reason}; records wait until it does"
        )


def _document(found: dict[str, Any]) -> Any:
    schema = found["schema"]
    return json.loads(schema) if isinstance(schema, str) else schema
