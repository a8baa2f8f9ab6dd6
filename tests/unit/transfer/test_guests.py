"""What a guest list promises beyond the checks of transports: nobody comes in after `expel`."""

import threading

from baton.messages.regions import RegionDescriptor
from baton.transfer.guests import GuestList

REGION = RegionDescriptor(backend="shm", host_id="here", address="place", num_bytes=1)


def token_of(descriptor: RegionDescriptor) -> bytes:
    return bytes.fromhex(descriptor.address.partition("/")[2])


def test_expelling_waits_for_who_is_just_coming_in() -> None:
    """Else its owner would look for live writers before this one is noted."""
    guests = GuestList(REGION)
    token = token_of(guests.admit("one"))
    entering, may_go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def note(guest: str) -> None:
        entering.set()
        assert may_go_on.wait(20.0)
        order.append(f"{guest} is in")

    def expel() -> None:
        guests.expel("one")
        order.append("expelled")

    writer = threading.Thread(target=guests.let_in, args=(token, note))
    writer.start()
    assert entering.wait(20.0)
    owner = threading.Thread(target=expel)
    owner.start()
    owner.join(0.05)
    assert owner.is_alive(), "it did not wait"
    may_go_on.set()
    writer.join()
    owner.join()
    assert order == ["one is in", "expelled"]
    assert not guests.let_in(token, note)
    assert order == ["one is in", "expelled"]


def test_a_token_is_one_guests_alone_and_one_lives() -> None:
    guests, met = GuestList(REGION), list[str]()
    tokens = [token_of(guests.admit(name)) for name in ("one", "two")]
    for token in reversed(tokens):
        assert guests.let_in(token, met.append)
    assert met == ["two", "one"]
    guests.expel("one")
    again = token_of(guests.admit("one"))
    assert again not in tokens
    assert not guests.let_in(tokens[0], met.append)
    for bad in (b"", bytes(16), tokens[1][:-1], tokens[1] + b"x"):
        assert not guests.let_in(bad, met.append)
    assert met == ["two", "one"]
