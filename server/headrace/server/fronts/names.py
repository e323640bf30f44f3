"""What the processes of one server know of each other beforehand."""

from __future__ import annotations

import struct

# Sockets in the folder that they share, which is their user's alone.
GRPC_SOCKET, LINK_SOCKET = "grpc", "link"
# What a front says first, with two descriptors: the sizes of the arenas for requests and responses.
HANDSHAKE = struct.Struct("<QQ")
# Tensors of one request, or one response, that are sooner copied twice through the socket than once
# through an arena; bytes.
INLINE = 16 << 10
# What callers are told while there is no model process.
AWAY = "the process that runs the models is being started: try again in a moment"
