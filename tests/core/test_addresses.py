"""One client is one client, however many addresses its network gives it."""

from __future__ import annotations

import pytest

from onsight.core.addresses import neighbourhood


@pytest.mark.parametrize(
    ("host", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::2", "fe80::2"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_is_known_by_what_its_owner_cannot_choose(host: str, whose: str) -> None:
    assert neighbourhood(host) == whose
