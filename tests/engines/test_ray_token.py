"""Ray's authentication: what is asked before Ray connects, and what is said of a refusal."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoprune.engines.cluster import Cluster
from autoprune.errors import RunError

from .conftest import RAY_WARNINGS

pytestmark = RAY_WARNINGS
TOKEN = "0123456789abcdef" * 4
SETUP = "ray._private.authentication.authentication_token_setup"


@pytest.fixture
def engine(monkeypatch):
    """The Ray engine; the heads at all addresses listen, and connecting to one is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from autoprune.engines import ray
    pytest.importorskip(SETUP, reason="this Ray has no tokens")
    monkeypatch.setattr(ray, "check_reachable", lambda address: None)
    monkeypatch.setattr(ray.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray.ray, "init", lambda **_: pytest.fail("it would retry for half a minute"))
    monkeypatch.setattr(f"{SETUP}.ensure_token_if_auth_enabled", lambda **_: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return ray


def refuse(engine, monkeypatch):
    def refused(address):
        raise engine.ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken")

    monkeypatch.setattr(engine.ray._raylet, "GcsClient", refused)


def test_a_cluster_that_refuses_this_process_is_not_taken_for_none(engine, monkeypatch):
    refuse(engine, monkeypatch)
    with pytest.raises(
        RunError, match=r"the Ray cluster at head:6379 can't be used: .*RAY_AUTH_MODE"
    ) as raised:
        engine.check(Cluster("head:6379"))
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_a_machine_without_a_token_does_not_ask_for_asking_would_abort_it(engine, monkeypatch):
    def missing(create_token_if_missing):
        assert not create_token_if_missing
        raise engine.ray.exceptions.AuthenticationError("enabled but no authentication token was found")

    monkeypatch.setattr(f"{SETUP}.ensure_token_if_auth_enabled", missing)
    monkeypatch.setattr(engine.ray._raylet, "GcsClient", None)  # calling it would be another error
    with pytest.raises(RunError, match=r"this machine has no token for it; .* copy ~/\.ray/auth_token"):
        engine.check(Cluster("head:6379"))


def test_a_client_server_that_refuses_this_process_is_not_taken_for_none(engine):
    grpc = pytest.importorskip("grpc", reason="pip install 'autoprune[client]'")

    class Refusing(grpc.GenericRpcHandler):
        def service(self, details):
            def refused(request, context):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")

            return grpc.unary_unary_rpc_method_handler(refused)

    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads, handlers=[Refusing()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with pytest.raises(RunError, match=f"at ray://127.0.0.1:{port} can't be used: .*RAY_AUTH_MODE"):
                engine.check(Cluster(f"ray://127.0.0.1:{port}"))
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_ray_itself_finds_the_token_where_no_host_is_named(engine, monkeypatch, address):
    from autoprune.engines.ray_token import check_token

    refuse(engine, monkeypatch)
    check_token(address)


def test_what_is_not_about_tokens_is_left_to_ray(engine, monkeypatch):
    from autoprune.engines.ray_token import check_token

    def other(address):
        raise RuntimeError("another version of Ray")

    monkeypatch.setattr(engine.ray._raylet, "GcsClient", other)
    check_token("head:6379")
    refuse(engine, monkeypatch)
    monkeypatch.setitem(sys.modules, SETUP, None)  # a Ray without tokens
    check_token("head:6379")
