"""Which network addresses are public: the only ones that a stranger's URL may make us dial."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

# `is_global` follows the IANA registries, which call some of these global although they lead (or may be translated)
# to an inside address. The list also keeps the answer the same on every Python release.
_REFUSED = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata service lives here
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform service, a public address that answers inside every virtual machine
        "169.254.0.0/16",  # link-local; the clouds' metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries an IPv4 address
        "3fff::/20",  # documentation
    )
)

# Unicast IPv6 is handed out from this block alone. Outside it lie ::1, v4-mapped and v4-compatible addresses,
# NAT64 (64:ff9b::/96, 64:ff9b:1::/48), unique-local, link-local, site-local and multicast.
_UNICAST_V6 = ip_network("2000::/3")


def is_public(text: str) -> bool:
    """True for the text of an IP address that anyone on the internet can reach; False for anything else."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address not in _UNICAST_V6):
        return False
    return address.is_global and not any(address in network for network in _REFUSED)


def is_address(text: str) -> bool:
    """True for the text of an IP address, v4 or v6."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
