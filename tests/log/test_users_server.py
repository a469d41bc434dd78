"""A server of the user's own, with TLS and with each way of being let in."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from esper.log.endpoint import Endpoint
from esper.log.errors import LogError
from esper.log.jetstream import JetStreamStore
from esper.log.nkey import UserKey
from support.log_runs import UserServer, user_server

KEY = UserKey.generate()


def certificate(directory: Path) -> None:
    """A self-signed certificate for the loopback address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(signed.public_bytes(pem))
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserServer]:
    directory = tmp_path_factory.mktemp("tls")
    certificate(directory)
    (directory / "user.nk").write_text(KEY.seed)
    yield from user_server(
        directory,
        f'tls {{ cert_file: "{directory}/cert.pem", key_file: "{directory}/key.pem" }}\n'
        "authorization { users: [ { user: ann, password: secret }, "
        f"{{ nkey: {KEY.public} }} ] }}",
    )


def round_trip(endpoint: Endpoint, log: str) -> None:
    store = JetStreamStore(endpoint, log)
    store.append(0, b"segment")
    assert list(store.read()) == [b"segment"]
    store.close()


def test_tls_with_user_and_password(guarded: UserServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_NATS_CA", str(guarded.directory / "cert.pem"))
    url = f"tls://ann:secret@127.0.0.1:{guarded.port}"
    endpoint = Endpoint.of_user(url)
    round_trip(endpoint, "password")
    assert endpoint.name == f"tls://127.0.0.1:{guarded.port}"
    with pytest.raises(LogError, match="Authorization"):
        JetStreamStore(Endpoint.of_user(url.replace("secret", "guess")), "password")


def test_tls_with_an_nkey_file(guarded: UserServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_NATS_CA", str(guarded.directory / "cert.pem"))
    monkeypatch.setenv("ESPER_NATS_NKEY", str(guarded.directory / "user.nk"))
    round_trip(Endpoint.of_user(f"tls://127.0.0.1:{guarded.port}"), "nkey")


def test_a_certificate_that_nobody_vouches_for_is_refused(guarded: UserServer) -> None:
    with pytest.raises(LogError, match="certificate verify failed"):
        JetStreamStore(Endpoint.of_user(f"tls://ann:secret@127.0.0.1:{guarded.port}"), "x")


def test_credentials_that_are_none_are_a_clear_error(
    guarded: UserServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_NATS_CA", str(guarded.directory / "cert.pem"))
    monkeypatch.setenv("ESPER_NATS_NKEY", str(tmp_path / "none"))
    with pytest.raises(LogError, match="is not a file"):
        Endpoint.of_user(guarded.url)
    (tmp_path / "bad").write_text("SUnonsense")
    monkeypatch.setenv("ESPER_NATS_NKEY", str(tmp_path / "bad"))
    with pytest.raises(LogError, match="127.0.0.1"):
        JetStreamStore(Endpoint.of_user(guarded.url), "x")
