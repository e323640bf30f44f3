"""gRPC channels of load processes: opening one, and its connection or a clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

OPTIONS: Mapping[str, int] = {
    # A process has one connection of its own, not one that others of its channels use as well.
    "grpc.use_local_subchannel_pool": 1,
    # What failed has failed: it is counted, not tried again behind our back.
    "grpc.enable_retries": 0,
    "grpc.service_config_disable_resolution": 1,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
}
_PATIENCE = 10.0


async def connected(address: str) -> grpc.aio.Channel:
    """An insecure channel that is connected. Raises ConnectionError, naming the address."""
    channel = grpc.aio.insecure_channel(address, options=list(OPTIONS.items()))
    try:
        await asyncio.wait_for(channel.channel_ready(), _PATIENCE)
    except TimeoutError:
        await channel.close()
        raise ConnectionError(f"nobody answers at {address} (gRPC, {_PATIENCE:g} s)") from None
    return channel
