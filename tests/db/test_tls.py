"""`sslmode=verify-full`: the server's certificate must come from the named authority and bear the name we asked for."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.db.proxy import proxy, through
from tidings.db.migrate import current_revision
from tidings.db.pool import Database
from tidings.errors import DatabaseUnavailable


class Authority:
    """A certificate authority of our own, with one server certificate for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate_file = folder / f"{name} ca.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(authority, authority, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        server_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database")])
        server = (
            self._builder(subject, authority, server_key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        chain = folder / f"{name} server.pem"
        chain.write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + server.public_bytes(serialization.Encoding.PEM)
        )
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.load_cert_chain(chain)

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


def parameters(authority: Authority) -> dict[str, str]:
    return {"sslmode": "verify-full", "sslrootcert": str(authority.certificate_file).replace(" ", "%20")}


async def test_the_right_server_is_accepted(database_dsn: str, authority: Authority) -> None:
    async with proxy(database_dsn, tls=authority.server_context) as port:
        dsn = through(database_dsn, port, **parameters(authority))
        async with await Database.connect(dsn) as database:
            assert await database.fetchval("SELECT 1") == 1
        assert await current_revision(dsn) is not None


async def test_another_name_is_refused(database_dsn: str, authority: Authority) -> None:
    async with proxy(database_dsn, tls=authority.server_context) as port:
        with pytest.raises(DatabaseUnavailable, match="certificate"):
            await Database.connect(through(database_dsn, port, "localhost", **parameters(authority)))


async def test_another_authority_is_refused(database_dsn: str, authority: Authority, tmp_path: Path) -> None:
    async with proxy(database_dsn, tls=authority.server_context) as port:
        with pytest.raises(DatabaseUnavailable, match="certificate"):
            await Database.connect(through(database_dsn, port, **parameters(Authority(tmp_path, "theirs"))))


async def test_a_server_without_tls_is_refused(database_dsn: str, authority: Authority) -> None:
    async with proxy(database_dsn) as port:
        with pytest.raises(DatabaseUnavailable):
            await Database.connect(through(database_dsn, port, **parameters(authority)))
