"""TLS to Temporal, with client certificates and with API keys, and certificates that cannot be used."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from app import temporal
from app.domain import OrderStatus
from app.settings import ApiSettings, Settings
from dev.servers import HOST, Server, free_port
from tests.kit.certificates import Authority
from tests.kit.http import serve
from tests.kit.nginx import needs_nginx, running_nginx
from tests.kit.shop import Shop, build_shop_worker

CA, CERTIFICATE, KEY = (f"TEMPORAL_TLS_{name}_PATH" for name in ("SERVER_CA_CERT", "CLIENT_CERT", "CLIENT_KEY"))

# Temporal's dev server has no TLS, so nginx stands in front of it. It asks for a certificate on one port, for a key on
# the other.
SITE = """
map $http_authorization $is_known { "Bearer %(key)s" 1; }
ssl_certificate %(certificate)s;
ssl_certificate_key %(certificate_key)s;
grpc_read_timeout 1h;
server {
    listen 127.0.0.1:%(certificates_port)d ssl http2;
    ssl_client_certificate %(authority)s;
    ssl_verify_client on;
    location / { grpc_pass grpc://%(temporal)s; }
    error_page 495 496 = @refused;
    location @refused { %(unauthenticated)s }
}
server {
    listen 127.0.0.1:%(keys_port)d ssl http2;
    location / {
        if ($is_known = "") { return 401; }
        grpc_pass grpc://%(temporal)s;
    }
    error_page 401 = @refused;
    location @refused { %(unauthenticated)s }
}
"""
UNAUTHENTICATED = """
        default_type application/grpc;
        add_header grpc-status 16;
        add_header grpc-message "Request unauthorized.";
        return 204;
"""


@dataclass(frozen=True)
class Secured:
    """The environment of a client that Temporal admits, by certificate or by key."""

    by_certificate: Mapping[str, str]
    by_key: Mapping[str, str]


@pytest.fixture(scope="module")
async def secured(temporal_server: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    own, worker = authority.issue("temporal.example"), authority.issue("worker")
    key = secrets.token_hex(16)
    ports = free_port(), free_port()
    site = SITE % {
        "key": key,
        "unauthenticated": UNAUTHENTICATED,
        "certificate": own.certificate,
        "certificate_key": own.key,
        "authority": authority.certificate,
        "temporal": temporal_server.address,
        "certificates_port": ports[0],
        "keys_port": ports[1],
    }
    trust = {CA: str(authority.certificate)}
    async with running_nginx(folder / "nginx", site, ports[1]):
        yield Secured(
            {
                **trust,
                "TEMPORAL_ADDRESS": f"{HOST}:{ports[0]}",
                CERTIFICATE: str(worker.certificate),
                KEY: str(worker.key),
            },
            {**trust, "TEMPORAL_ADDRESS": f"{HOST}:{ports[1]}", "TEMPORAL_API_KEY": key},
        )


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)


@needs_nginx
@pytest.mark.parametrize("way", ["by_certificate", "by_key"])
async def test_order_completes_over_tls(
    secured: Secured, way: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, getattr(secured, way))
    over_tls = shop.with_client(await temporal.connect())
    await over_tls.stock()
    async with build_shop_worker(over_tls):
        order = await over_tls.start()
        assert (await order.result()).status is OrderStatus.COMPLETED


@needs_nginx
@pytest.mark.parametrize(
    ("way", "changes", "reason"),
    [
        ("by_certificate", {CERTIFICATE: None, KEY: None}, "Unauthenticated"),
        ("by_certificate", {CA: "strangers.pem"}, "InvalidCertificate"),
        ("by_certificate", {CA: None}, "InvalidCertificate"),
        ("by_key", {"TEMPORAL_API_KEY": "wrong"}, "Unauthenticated"),
        ("by_key", {"TEMPORAL_API_KEY": None, "TEMPORAL_TLS": "true"}, "Unauthenticated"),
    ],
)
async def test_client_without_credentials_or_trust_does_not_connect(
    secured: Secured,
    way: str,
    changes: Mapping[str, str | None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Authority(tmp_path, "strangers")
    monkeypatch.chdir(tmp_path)
    set_environment(monkeypatch, {**getattr(secured, way), **changes})
    with pytest.raises(RuntimeError, match=reason):  # worker.py logs it and tries again
        await temporal.connect()


@needs_nginx
@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"TEMPORAL_API_KEY": "wrong"}, "credentials rejected"), ({CA: "strangers.pem"}, "untrusted certificate")],
)
async def test_api_without_credentials_or_trust_says_so(
    secured: Secured,
    settings: ApiSettings,
    changes: Mapping[str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Authority(tmp_path, "strangers")
    monkeypatch.chdir(tmp_path)
    set_environment(monkeypatch, {**secured.by_key, **changes})
    async with serve(settings, secured.by_key["TEMPORAL_ADDRESS"]) as api:
        checks = (await api.get("/readyz")).json()["checks"]
    assert checks == {"mongodb": "ok", "temporal": f"unavailable: {reason}"}


# --- files that hold no certificate


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder: the authority's certificate (ca.pem), one with its key (api.*.pem), and other files."""
    authority = Authority(tmp_path, "ca")
    authority.issue("api")
    (tmp_path / "empty.pem").touch()
    (tmp_path / "text.pem").write_text("-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n")
    (tmp_path / "binary.pem").write_bytes(b"\x30\x82\xff\xfe")
    monkeypatch.chdir(tmp_path)


PAIR = {CERTIFICATE: "api.certificate.pem", KEY: "api.key.pem"}
UNREADABLE = r"TEMPORAL_TLS_\* or TEMPORAL_CONFIG_FILE"


@pytest.mark.parametrize(
    ("environment", "wrong"),
    [
        *(({**PAIR, name: "missing.pem"}, f"{UNREADABLE}: .*'missing.pem'") for name in (CA, CERTIFICATE, KEY)),
        *(({**PAIR, name: "."}, f"{UNREADABLE}: .*'.'") for name in (CA, CERTIFICATE, KEY)),
        *(({CA: file}, CA) for file in ("empty.pem", "text.pem", "binary.pem", "api.key.pem")),
        ({**PAIR, CERTIFICATE: "text.pem"}, CERTIFICATE),
        *(({**PAIR, KEY: file}, KEY) for file in ("empty.pem", "ca.pem")),
        ({**PAIR, KEY: None}, KEY),
        ({**PAIR, CERTIFICATE: None}, KEY),
        ({"TEMPORAL_CONFIG_FILE": "text.pem"}, UNREADABLE),
        ({"TEMPORAL_PROFILE": "missing"}, f"{UNREADABLE}: Profile 'missing' not found"),
    ],
)
async def test_wrong_file_for_temporal_is_one_line(
    files: None, environment: Mapping[str, str | None], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(SystemExit) as error:
        await temporal.connect()
    assert re.match(f"wrong setting: {wrong}", str(error.value))
    assert len(str(error.value).splitlines()) == 1


async def test_right_files_for_temporal_are_accepted(files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {CA: "ca.pem", **PAIR})
    await temporal.connect(lazy=True)


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
@pytest.mark.parametrize(
    "options",
    [
        *(f"tlsCAFile={file}" for file in ("missing.pem", ".", "empty.pem", "text.pem", "binary.pem", "api.key.pem")),
        *(f"tlsCertificateKeyFile={file}" for file in ("missing.pem", "empty.pem", "ca.pem", "text.pem")),
    ],
)
def test_wrong_file_for_mongodb_is_one_line(
    files: None, scheme: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGODB_URI", f"{scheme}://u:pass@db.example/?tls=true&{options}")
    with pytest.raises(SystemExit) as error:
        Settings.load()
    assert str(error.value).startswith("wrong setting: MONGODB_URI: ")
    assert len(str(error.value).splitlines()) == 1
    assert "pass" not in str(error.value)


@pytest.mark.parametrize("scheme", ["mongodb://db.example/?", "mongodb+srv://db.example/?srvMaxHosts=2&"])
def test_right_files_for_mongodb_are_accepted(files: None, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of_api = "tlsCAFile=ca.pem&tlsCertificateKeyFile=api.both.pem"
    monkeypatch.setenv("MONGODB_URI", f"{scheme}tls=true&{files_of_api}&authMechanism=MONGODB-X509")
    Settings.load()
