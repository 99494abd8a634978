"""A cell's own certificate authority: who its nodes, its control plane and its gateways are to each other.

Owns FOLDER/ca.key and what it signs; all of it is made when it is first asked for. Nodes get certificates for servers,
control and gateway certificates for clients, and neither can stand for the other (extended key usage). Certificates
name roles, not addresses: a host may move without a new one.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lepton_ai.errors import Corrupt, Unavailable
from lepton_ai.spec.replica import node_host

CA_DAYS, LEAF_DAYS = 7300, 825
RENEW_DAYS = 275
"""A certificate with less time than this is made anew when it is asked for."""
_PAST = datetime.timedelta(hours=1)
Role = Literal["control", "gateway"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its key (0600)."""

    cert: Path
    key: Path


class Authority:
    """The authority in `folder`, made (0700) when it is not there.

    Raises Unavailable when its files cannot be used, Corrupt when they cannot be read.
    """

    def __init__(self, folder: Path, cell: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"lepton cell {cell}"[:64])])
        self.ca = folder / "ca.pem"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key, self._cert = self._load() or self._make()
        except OSError as error:
            raise _unusable(folder, error) from error

    def node(self, name: str, folder: Path) -> Pair:
        """What node `name` proves itself with, in `folder`; made anew when it is not good any more."""
        return self._pair(folder, "node", x509.DNSName(node_host(name)), ExtendedKeyUsageOID.SERVER_AUTH)

    def server(self, host: str) -> Pair:
        """What the API or the gateways may prove themselves with at `host`, a name or an address.

        Good for whoever trusts `ca`: the cell's nodes do.
        """
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        stem = "server-" + "".join(c if c.isalnum() else "-" for c in host)
        return self._pair(self._folder, stem, name, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, role: Role) -> Pair:
        """What control, or the gateways, prove themselves with to nodes."""
        return self._pair(self._folder, role, x509.DNSName(f"{role}.client"), ExtendedKeyUsageOID.CLIENT_AUTH)

    # -- within

    def _load(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
        path = self._folder / "ca.key"
        if not path.exists():
            return None
        if path.stat().st_mode & 0o077:
            raise Unavailable(f"the key {path} can be read by others", hint=f"run: chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            cert = x509.load_pem_x509_certificate(self.ca.read_bytes())
            if not isinstance(key, ec.EllipticCurvePrivateKey) or cert.public_key() != key.public_key():
                raise ValueError("key and certificate do not belong together")
        except (ValueError, TypeError, FileNotFoundError) as error:
            hint = "restore both files, or remove them: every node then needs new certificates"
            raise Corrupt(f"{path} or {self.ca} cannot be used: {error}", hint=hint) from None
        return key, cert

    def _make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        draft = (
            _draft(self._name, self._name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        cert = draft.sign(key, hashes.SHA256())
        # The key last: without it nothing was made, and the next call makes both.
        _write(self.ca, cert.public_bytes(serialization.Encoding.PEM))
        _write(self._folder / "ca.key", _pem(key))
        return key, cert

    def _pair(self, folder: Path, stem: str, host: x509.GeneralName, usage: x509.ObjectIdentifier) -> Pair:
        pair = Pair(folder / f"{stem}.pem", folder / f"{stem}.key")
        if self._good(pair, host):
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(host.value)[:64])])
        signing = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        cert = (
            _draft(name, self._name, key.public_key(), LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(signing, critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([host]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            pair.cert.unlink(missing_ok=True)  # never an old certificate beside a new key
            _write(pair.key, _pem(key))
            _write(pair.cert, cert.public_bytes(serialization.Encoding.PEM))
        except OSError as error:
            raise _unusable(folder, error) from error
        return pair

    def _good(self, pair: Pair, host: x509.GeneralName) -> bool:
        try:
            cert = x509.load_pem_x509_certificate(pair.cert.read_bytes())
            key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
            cert.verify_directly_issued_by(self._cert)
            names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            if cert.public_key() != key.public_key() or list(names) != [host]:
                return False
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        left = cert.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        return left > datetime.timedelta(days=RENEW_DAYS)


def _draft(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    # From an hour ago: clocks of hosts differ.
    begin = datetime.datetime.now(datetime.UTC) - _PAST
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _unusable(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(f"cannot use {folder}: {error.strerror}", hint=f"check the rights: ls -la {folder}")
