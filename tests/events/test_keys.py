"""Keys: who may read them, and which ones nobody may trust."""

from __future__ import annotations

import functools
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from esper_events import keys
from esper_events.errors import KeyFileError, PublicKeyError
from esper_events.keys import PublicKey, SigningKey

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """Addition on the twisted Edwards curve of RFC 8032, 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def times(n: int, point: Point) -> Point:
    result: Point = (0, 1)
    while n:
        if n & 1:
            result = add(result, point)
        point, n = add(point, point), n >> 1
    return result


def point_with(y: int) -> Point | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


@functools.cache
def torsion() -> list[Point]:
    """The eight points of small order: the multiples of one of order 8."""
    for y in range(2, 100):
        point = point_with(y)
        if point is not None:
            generator = times(L, point)
            points = [times(n, generator) for n in range(8)]
            if len(set(points)) == 8:
                return points
    raise ValueError("no point of order 8 found")


def test_signatures_verify_and_bind_key_and_data() -> None:
    one, two = SigningKey.generate(), SigningKey.generate()
    signature = one.sign(b"data")
    assert one.public.verify(signature, b"data")
    assert not one.public.verify(signature, b"date")
    assert not two.public.verify(signature, b"data")
    assert not one.public.verify(signature[:-1], b"data")
    assert one.public.id[0] == 1
    assert len(one.public.id) == 17
    assert one.public.fingerprint.startswith(f"ed25519:{one.public.id[1:].hex()}")


def test_the_second_spelling_of_a_signature_is_refused() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"data")
    s = int.from_bytes(signature[32:], "little") + L
    assert not key.public.verify(signature[:32] + s.to_bytes(32, "little"), b"data")


def test_all_eight_points_of_small_order_are_refused() -> None:
    for point in torsion():
        with pytest.raises(PublicKeyError, match="small order"):
            PublicKey(encode(point))


def test_non_canonical_encodings_are_refused() -> None:
    refused = 0
    for sign in (0, 1 << 255):
        for y in range(P, 1 << 255):
            with pytest.raises(PublicKeyError, match="canonical"):
                PublicKey((y | sign).to_bytes(32, "little"))
            refused += 1
        for y in (1, P - 1):  # x is 0 there: a set sign bit is a second spelling
            with pytest.raises(PublicKeyError):
                PublicKey((y | sign).to_bytes(32, "little"))
    assert refused == 38


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_accepted_exactly_when_it_is_a_point_of_large_order(raw: bytes) -> None:
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    small = {point[1] for point in torsion()}
    if y < P and point_with(y) is not None and y not in small:
        assert PublicKey(raw).raw == raw
    else:
        with pytest.raises(PublicKeyError):
            PublicKey(raw)


@given(st.binary(max_size=64).filter(lambda raw: len(raw) != 32))
def test_another_length_is_refused(raw: bytes) -> None:
    with pytest.raises(PublicKeyError, match="wanted 32"):
        PublicKey(raw)


def test_a_saved_key_is_private_and_comes_back(tmp_path: Path) -> None:
    key = SigningKey.generate()
    path = tmp_path / "trainer.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert SigningKey.load(path).public == key.public
    key.public.save(tmp_path / "trainer.pub")
    assert PublicKey.load(tmp_path / "trainer.pub") == key.public
    assert "PRIVATE" not in repr(key)


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "trainer.key"
    SigningKey.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        SigningKey.generate().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o601, 0o660, 0o777])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "trainer.key"
    SigningKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=r"wanted 0600: chmod 600"):
        SigningKey.load(path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trainer.key"
    SigningKey.generate().save(path)
    owner = path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(KeyFileError, match="belongs to user"):
        SigningKey.load(path)


def test_an_encrypted_key_opens_under_its_pass_phrase_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KDF_ROUNDS", 2)
    key, path = SigningKey.generate(), tmp_path / "trainer.key"
    key.save(path, b"open sesame")
    assert b"OPENSSH PRIVATE KEY" in path.read_bytes()
    assert (
        SigningKey.load(path, lambda asked: b"open sesame" * (asked == path)).public == key.public
    )
    with pytest.raises(KeyFileError, match="is encrypted, and nothing here asks"):
        SigningKey.load(path)
    for wrong in (b"", b"open sesamf"):
        with pytest.raises(KeyFileError, match="the pass phrase does not fit"):
            SigningKey.load(path, lambda _, wrong=wrong: wrong)


def test_a_key_that_is_not_encrypted_asks_for_nothing(tmp_path: Path) -> None:
    key, path = SigningKey.generate(), tmp_path / "trainer.key"
    key.save(path)

    def refuse(_: Path) -> bytes:
        pytest.fail("asked for a pass phrase")

    assert SigningKey.load(path, refuse).public == key.public


def test_files_that_hold_no_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    form = serialization.PrivateFormat.OpenSSH
    pem = serialization.Encoding.PEM
    key = generate_private_key(SECP256R1())
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="another algorithm"):
        SigningKey.load(path)
    for content in (b"", b"noise\n", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"):
        path.write_bytes(content)
        with pytest.raises(KeyFileError):
            SigningKey.load(path)
        with pytest.raises(KeyFileError):
            PublicKey.load(path)
    for loader in (SigningKey.load, PublicKey.load):
        with pytest.raises(KeyFileError):
            loader(tmp_path / "missing")
        with pytest.raises(KeyFileError):
            loader(tmp_path)
    with pytest.raises(KeyFileError):
        SigningKey.generate().save(tmp_path / "missing" / "k")


@given(st.binary(max_size=300))
def test_noise_in_a_public_key_file_raises_only_declared_errors(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.pub"
    path.write_bytes(b"ssh-ed25519 " + noise)
    with pytest.raises((KeyFileError, PublicKeyError)):
        PublicKey.load(path)
