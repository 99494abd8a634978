"""A cell's authority: what it makes, keeps, and refuses to go on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lepton_ai.errors import Corrupt, Unavailable
from lepton_ai.tenancy import authority
from lepton_ai.tenancy.authority import Authority, Pair


def names(pair: Pair) -> list[str]:
    cert = x509.load_pem_x509_certificate(pair.cert.read_bytes())
    return [str(name.value) for name in cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def test_it_is_made_once_and_signs_one_pair_a_role(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "tls", "home"), Authority(tmp_path / "tls", "home")
    pair = first.node("node-1", tmp_path / "node-1")
    data = (pair.cert.read_bytes(), pair.key.read_bytes())
    assert second.node("node-1", tmp_path / "node-1") == pair
    assert (pair.cert.read_bytes(), pair.key.read_bytes()) == data
    pairs = [pair, first.client("control"), first.client("gateway"), first.server("10.0.0.1"), first.server("a.b")]
    assert [names(item) for item in pairs] == [
        ["node-1.node"], ["control.client"], ["gateway.client"], ["10.0.0.1"], ["a.b"],
    ]  # fmt: skip
    root = x509.load_pem_x509_certificate(first.ca.read_bytes())
    for item in pairs:
        cert = x509.load_pem_x509_certificate(item.cert.read_bytes())
        cert.verify_directly_issued_by(root)
        (usage,) = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        is_client = "client" in names(item)[0]
        assert usage == (ExtendedKeyUsageOID.CLIENT_AUTH if is_client else ExtendedKeyUsageOID.SERVER_AUTH)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o700}


def test_what_is_not_good_any_more_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Authority(tmp_path / "tls", "home")
    with monkeypatch.context() as patch:
        patch.setattr(authority, "LEAF_DAYS", authority.RENEW_DAYS - 1)
        old = made.node("node-1", tmp_path / "node-1").cert.read_bytes()
    pair = made.node("node-1", tmp_path / "node-1")
    new = pair.cert.read_bytes()
    assert new != old
    assert made.node("node-1", tmp_path / "node-1").cert.read_bytes() == new
    assert names(made.node("node-2", tmp_path / "node-1")) == ["node-2.node"]
    other = Authority(tmp_path / "other", "home")
    foreign = other.node("node-2", tmp_path / "node-1").cert.read_bytes()
    assert foreign != made.node("node-2", tmp_path / "node-1").cert.read_bytes()
    pair.key.write_bytes(made.client("control").key.read_bytes())
    assert made.node("node-2", tmp_path / "node-1").key.read_bytes() != made.client("control").key.read_bytes()
    pair.cert.write_text("torn")
    assert names(made.node("node-2", tmp_path / "node-1")) == ["node-2.node"]


def test_a_start_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    Authority(tmp_path / "tls", "home")
    (tmp_path / "tls" / "ca.key").unlink()
    made = Authority(tmp_path / "tls", "home")
    assert names(made.client("control")) == ["control.client"]


def test_a_key_that_others_read_or_that_does_not_fit_is_not_used(tmp_path: Path) -> None:
    made = Authority(tmp_path / "tls", "home")
    key = tmp_path / "tls" / "ca.key"
    key.chmod(0o644)
    with pytest.raises(Unavailable, match="read by others"):
        Authority(tmp_path / "tls", "home")
    key.chmod(0o600)
    made.ca.write_bytes(Authority(tmp_path / "other", "home").ca.read_bytes())
    with pytest.raises(Corrupt, match="do not belong together"):
        Authority(tmp_path / "tls", "home")
    made.ca.unlink()
    with pytest.raises(Corrupt):
        Authority(tmp_path / "tls", "home")
