"""Who an address belongs to, as far as it can tell."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

_HOSTS_BITS = 64
"""Of an IPv6 address, what a host chooses for itself, and as often as it likes (RFC 4291, 8981)."""


@lru_cache(1024)
def neighbourhood(host: str) -> str:
    """`host`, or the /64 network around an IPv6 address: the least that is somebody's own.

    An IPv4 address inside an IPv6 one is itself; so is what belongs to one link, and what is no address.
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address) or address.is_loopback or address.is_link_local:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), _HOSTS_BITS), strict=False))
