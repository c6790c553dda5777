"""Rate limits, and log lines nobody can forge."""

from __future__ import annotations

from provisioner.server.log import line
from provisioner.server.tickets import MOST_ADDRESSES, RateLimiter


def test_an_address_gets_its_burst_and_then_its_rate() -> None:
    now = [0.0]
    limiter = RateLimiter(per_second=2.0, burst=3, clock=lambda: now[0])
    assert [limiter.allow("a") for _ in range(4)] == [True, True, True, False]
    assert limiter.allow("b"), "another address has its own"
    now[0] = 0.5
    assert [limiter.allow("a") for _ in range(2)] == [True, False]


def test_waiting_does_not_save_up_more_than_a_burst() -> None:
    now = [0.0]
    limiter = RateLimiter(per_second=2.0, burst=3, clock=lambda: now[0])
    limiter.allow("a")
    now[0] = 1e6
    assert [limiter.allow("a") for _ in range(4)] == [True, True, True, False]


def test_it_remembers_a_bounded_number_of_addresses() -> None:
    limiter = RateLimiter(per_second=0.001, burst=1)
    for number in range(MOST_ADDRESSES + 100):
        limiter.allow(str(number))
    assert len(limiter._buckets) == MOST_ADDRESSES


def test_a_value_with_blanks_or_control_characters_is_quoted() -> None:
    logged = line("event", plain="a:b/c", odd='x y="1"\n\x1b\u2028', none=None)
    assert logged.split(" ", 2)[1:] == ["event", 'plain=a:b/c odd="x y=\\"1\\"\\n\\u001b\\u2028"']
