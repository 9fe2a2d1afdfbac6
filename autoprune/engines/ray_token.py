"""Whether a Ray cluster takes this process's token; Ray itself retries for half a minute, and hides why."""

import ray

from autoprune.engines.ray_setup import REACH_S, host_and_port


def check_token(address: str | None) -> None:
    """Asks the cluster at ``HOST:PORT`` or ``ray://HOST:PORT`` once, with the token that Ray would send.

    Raises:
        ray.exceptions.AuthenticationError: there is no token here, or the cluster refuses what is sent.
    """
    try:
        from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    except ImportError:  # a Ray without tokens
        return
    if (place := host_and_port(address)) is None:
        return
    # Without a token, what is asked below would abort this process.
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    try:
        if str(address).startswith("ray://"):
            _ask_client_server("{}:{}".format(*place))
        else:
            ray._raylet.GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        raise
    except Exception:  # another version, or no Ray: `ray.init` says what it is
        return


def _ask_client_server(place: str) -> None:
    """Calls what needs a token and no client; all answers but a refusal are good."""
    from ray._private.grpc_utils import init_grpc_channel

    channel = init_grpc_channel(place)
    try:
        channel.unary_unary("/ray.rpc.RayletDriver/ClusterInfo")(b"", timeout=REACH_S)
    except Exception as error:
        if "UNAUTHENTICATED" in str(error):
            raise ray.exceptions.AuthenticationError("the token is refused") from error
        raise
    finally:
        channel.close()
