"""Ids of a stream's events, with which a client asks any router of the cluster for the rest. Pure.

    id: 1.PLACE.SEED.CREATED.ID.TAG      TAG: who made it, and for which request

No router keeps anything of a stream that is over. The id has what the client cannot know and the
rest must share (seed, time of creation, id), and how far the client has come; the tokens up to
there are computed again, and PLACE has their checksum.
Invariant: an id is believed only with the request it was made for: the tag covers route, body,
`Authorization` and every other part of the id.
Elsewhere: putting ids into a stream, leaving out what the client has (numbered_stream.py).
"""

import hmac
import re
from base64 import b64encode
from hashlib import blake2b
from urllib.parse import quote, unquote

import msgspec

from baton.core.errors import RequestError
from baton.router.http.messages import Request
from baton.router.marks import Resume
from baton.router.requests import GENERATE, Generation

LAST_EVENT_ID = "Last-Event-ID"
LAST_EVENT_FIELD = LAST_EVENT_ID.lower()
MAX_ID_CHARS = 2048

_KEY_LABEL = b"baton router event ids"
_NUM_TAG_BYTES = 12
_ID = re.compile(
    r"1\.(?P<place>(?P<tokens>[0-9]{1,9})\.(?P<checksum>[0-9a-f]{1,8})"
    r"\.(?P<is_end>-?)(?P<events>[0-9]{1,6}))"
    r"\.(?P<stream>(?P<seed>[0-9]{1,20})\.(?P<created>[0-9]{1,12})\.(?P<id>[A-Za-z0-9._~%-]+))"
    r"\.(?P<tag>[A-Za-z0-9+/]{16})"
)


def derive_key(cluster_secret: str) -> bytes:
    """The routers' own key: what it signs says nothing to workers, nor theirs to routers."""
    return hmac.digest(cluster_secret.encode(), _KEY_LABEL, "sha256")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How far a client has come: it has all events up to the mark behind `num_tokens` tokens, whose
    checksum this is, and `num_behind` events of the step after it. Or, near the end, where steps
    have no marks: `num_left` events are still to come, `[DONE]` is the last of them."""

    num_tokens: int
    checksum: int
    num_behind: int = 0
    num_left: int | None = None

    @property
    def has_everything(self) -> bool:
        return self.num_left == 0


class StreamIds:
    """The ids of one stream's events."""

    __slots__ = ("_behind", "_tags")

    def __init__(self, tags: "blake2b", seed: int, created: int, id_: str):
        stream = _stream_text(seed, created, id_)
        self._behind = b".%b." % stream
        self._tags = _with(tags, stream)

    def line(self, num_tokens: int, checksum: int, num_behind: int) -> bytes:
        """Of an event after which the client has come so far."""
        place = b"%d.%x.%d" % (num_tokens, checksum, num_behind)
        return b"id: 1.%b%b%b\n" % (place, self._behind, _tag(self._tags, place))

    def end_line(self, num_tokens: int, checksum: int, num_left: int) -> bytes:
        """Of one of the last events."""
        place = b"%d.%x.-%d" % (num_tokens, checksum, num_left)
        return b"id: 1.%b%b%b\n" % (place, self._behind, _tag(self._tags, place))


class RequestIds:
    """What one request has to do with ids. `seen`: it is a client that came back, and this is how
    far it had come; `shown_id` is then the id that its stream shows."""

    __slots__ = ("_header", "_shows_request_id", "_tags", "seen", "shown_id")

    def __init__(self, tags: "blake2b", shows_request_id: bool, said: str | None):
        self._tags = tags
        self._shows_request_id = shows_request_id
        self.seen: Place | None = None
        self.shown_id: str | None = None
        self._header: tuple[int, int] | None = None
        if said is not None:
            self._believe(said)

    def _believe(self, said: str) -> None:
        found = _ID.fullmatch(said) if len(said) <= MAX_ID_CHARS else None
        if found is None:
            raise _refusal(f"is {said[:80]!r}, which no router made; send the last id as it came")
        tags = _with(self._tags, found["stream"].encode())
        if not hmac.compare_digest(_tag(tags, found["place"].encode()), found["tag"].encode()):
            raise _refusal(
                "is not of this request; send the same route, body (byte for byte) and "
                "Authorization as at first, to a router with the same secret"
            )
        num_events = int(found["events"])
        self.seen = Place(
            num_tokens=int(found["tokens"]),
            checksum=int(found["checksum"], 16),
            num_behind=0 if found["is_end"] else num_events,
            num_left=num_events if found["is_end"] else None,
        )
        self._header = int(found["seed"]), int(found["created"])
        self.shown_id = unquote(found["id"])

    @property
    def shown_request_id(self) -> str | None:
        """The X-Request-ID that workers make their events' ids from, of a client that came back."""
        return self.shown_id if self._shows_request_id else None

    def asked_again(self, generation: Generation) -> Generation:
        """The request of a client that came back, for the whole of its stream. A `rid` of its own
        may still be taken by the first request, whose worker is just finding out that nobody
        listens; the stream shows it all the same."""
        if self._header is None:
            return generation
        resume = Resume([], *self._header, self.shown_id)
        return generation.without("rid").resumed(msgspec.json.encode(resume))

    def told(self, marks_header: str, request_id: str) -> tuple[str, StreamIds]:
        """What the stream is called from now on, in the words of a worker's header for marks, and
        its ids. Raises ValueError if the worker's header makes no sense."""
        seed, created, id_ = marks_header.split(" ", 2)
        if self._header is None:
            stream = int(seed), int(created), request_id if self._shows_request_id else id_
        else:
            assert self.shown_id is not None
            stream = *self._header, self.shown_id
        return "{} {} {}".format(*stream), StreamIds(self._tags, *stream)


class EventIds:
    """Of all streams of a router; those of all routers with the same key are alike."""

    def __init__(self, key: bytes):
        self._tags = blake2b(key=key, digest_size=_NUM_TAG_BYTES)

    def for_request(self, request: Request, generation: Generation) -> RequestIds | None:
        """None: its stream gets no ids. Raises RequestError if it has one that is not its own."""
        said = request.headers.get(LAST_EVENT_FIELD) or None
        if not _carries_ids(generation):
            if said is not None:
                raise _refusal("came with a request whose events have no ids; leave it out")
            return None
        tags = _with(self._tags, generation.route.encode())
        tags = _with(tags, request.headers.get("authorization", "").encode())
        return RequestIds(_with(tags, request.body), generation.route != GENERATE, said)


def refuse_ids(request: Request) -> None:
    """For a router without ids, which would begin anew: raises RequestError."""
    if request.headers.get(LAST_EVENT_FIELD):
        raise _refusal("is not known to this router, which was started without --event-ids")


def _carries_ids(generation: Generation) -> bool:
    """One sample's stream, which is made again from its tokens alone."""
    return generation.may_be_resumed


def _refusal(why: str) -> RequestError:
    return RequestError(f"{LAST_EVENT_ID} {why}", param=LAST_EVENT_ID, code="invalid_event_id")


def _stream_text(seed: int, created: int, id_: str) -> bytes:
    return f"{seed}.{created}.{quote(id_, safe='')}".encode()


def _with(tags: "blake2b", part: bytes) -> "blake2b":
    """A copy that has read one more part; lengths keep parts apart."""
    tags = tags.copy()
    tags.update(len(part).to_bytes(8, "big"))
    tags.update(part)
    return tags


def _tag(tags: "blake2b", place: bytes) -> bytes:
    tags = tags.copy()
    tags.update(place)
    return b64encode(tags.digest())
