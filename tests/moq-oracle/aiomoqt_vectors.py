"""Writes what aiomoqt says for each name that src/transports/moq/codec_vectors.rs explains.

    pip install aiomoqt==0.13.3        (Python 3.12 or newer)
    python tests/moq-oracle/aiomoqt_vectors.py DRAFT > tests/data/moq/aiomoqt-DRAFT.hex     (18, 20, 22)
"""

import sys
from importlib.metadata import version

from aiomoqt.context import profile_for
from aiomoqt.messages import d18, d20, data, fetch, namespace, publish, request, session_setup, subscribe
from aiomoqt.messages.params import LocationFilter, RangeFilter
from aiomoqt.types import FetchType, GroupOrder, ObjectStatus, SubscribeDoneCode

DRAFT = int(sys.argv[1])
PROFILE = profile_for(DRAFT)
NAMESPACE = (b"moq", b"test")
NAME = b"video"
PROPERTIES = {0x0E: 200, 0x30: 1, 0x41: b"kept"}


def show(name, written):
    if not isinstance(written, (bytes, bytearray)):
        written = written.data_slice(0, written.tell())
    print(name, bytes(written).hex())


def message(name, value):
    show(name, value.serialize(prof=PROFILE))


def subscription(name, **fields):
    message(name, subscribe.Subscribe(request_id=2, track_namespace=NAMESPACE, track_name=NAME, **fields))


def fetching(name, kind, **fields):
    message(name, fetch.Fetch(kind, 300, subscriber_priority=None, group_order=None, **fields))


def subgroup_stream(name):
    """The objects that codec_vectors.rs describes, in one stream."""
    header = data.SubgroupHeader(5, 1000, 2, 7, extensions_present=True, end_of_group=True, first_object=False, prof=PROFILE)
    out = header.serialize()
    written = bytes(out.data_slice(0, out.tell()))
    written += header.next_object_bytes(b"ab", {0x10: 90_000}, object_id=3)
    written += header.next_object_bytes(b"cd", object_id=4)
    written += header.next_object_bytes(b"", object_id=200)
    written += header.next_object_bytes(b"", status=ObjectStatus.END_OF_GROUP, object_id=201)
    print(name, written.hex())


def fetch_stream(name, order):
    """The items that codec_vectors.rs describes, in one stream."""
    written = bytes(data.FetchHeader(request_id=300).serialize(prof=PROFILE).data)

    def group(number):
        return 20 - number if order == GroupOrder.DESCENDING else number

    def item(g, o, subgroup, priority, payload, extensions=None):
        return data.FetchObject(group_id=group(g), subgroup_id=subgroup or 0, object_id=o, publisher_priority=priority,
                                extensions=extensions, payload=payload, datagram=subgroup is None)

    items = [
        item(5, 2, 0, 128, b"first"),
        item(5, 3, 0, 128, b"next"),
        item(5, 9, 4, 128, b"far", {0x10: 5}),
        item(5, 10, 4, 9, b""),
        item(5, 11, 5, 9, b"z"),
        item(8, 0, None, 9, b"datagram"),
        "gap",
        item(9, 8, 0, 9, b"after"),
    ]
    prior = None
    for current in items:
        if current == "gap":
            # As its own reader fills the fields of an end of range in: subgroup and priority of the object before.
            current = data.FetchObject(group_id=group(9), object_id=7, end_of_range=0x10C, payload=b"",
                                       subgroup_id=prior.subgroup_id, publisher_priority=prior.publisher_priority)
        out = current.serialize(prof=PROFILE, prior=prior, group_order=order)
        written += bytes(out.data_slice(0, out.tell())) if hasattr(out, "tell") else bytes(out)
        prior = current
    print(name, written.hex())


def main():
    print(f"# Written by aiomoqt {version('aiomoqt')} (tests/moq-oracle/aiomoqt_vectors.py): draft {DRAFT}.")
    message("setup", (d18 if DRAFT == 18 else d20).Setup(
        {0x01: b"/live?x=1", 0x04: 4096, 0x05: b"example.net:4443", 0x07: b"oracle/1"}))
    subscription("subscribe")
    subscription("subscribe-next-group", filter_type=1)
    subscription("subscribe-next-object", filter_type=2)
    subscription("subscribe-from", filter_type=3, start_group=70_000, start_object=3)
    subscription("subscribe-groups", filter_type=4, start_group=5, start_object=3, end_group=9)
    subscription("subscribe-params", priority=200, group_order=GroupOrder.DESCENDING, forward=0,
                 parameters={0x02: 500, 0x03: b"secret", 0x04: 2000, 0x32: 0})
    message("subscribe-ok", subscribe.SubscribeOk(
        track_alias=1 << 40, expires=1000, group_order=GroupOrder.ASCENDING, content_exists=1,
        largest_group_id=300, largest_object_id=20_000, parameters={}, track_extensions=dict(PROPERTIES)))
    message("publish", publish.Publish(
        request_id=7, track_namespace=NAMESPACE, track_name=NAME, track_alias=128, forward=1, content_exists=1,
        largest_group_id=1, largest_object_id=0, group_order=GroupOrder.ASCENDING, parameters={},
        track_extensions=dict(PROPERTIES)))
    message("publish-done", subscribe.SubscribeDone(status_code=2, stream_count=17, reason="the end"))
    message("publish-done-uncounted", subscribe.SubscribeDone(
        status_code=SubscribeDoneCode.TOO_FAR_BEHIND, stream_count=(1 << (62 if DRAFT == 18 else 64)) - 1, reason=""))
    message("publish-namespace", namespace.PublishNamespace(request_id=0, namespace=NAMESPACE, parameters={}))
    message("subscribe-namespace",
            namespace.SubscribeNamespace(request_id=4, namespace_prefix=NAMESPACE[:1], parameters={}))
    message("subscribe-tracks",
            namespace.SubscribeTracks(request_id=6, namespace_prefix=NAMESPACE[:1], parameters={0x10: 0}))
    message("namespace", request.Namespace(namespace_suffix=NAMESPACE[1:]))
    message("namespace-done", request.NamespaceDone(namespace_suffix=NAMESPACE[1:]))
    message("publish-blocked", namespace.PublishBlocked(namespace_suffix=NAMESPACE[1:], track_name=NAME))
    message("track-status", subscribe.TrackStatus(request_id=8, track_namespace=NAMESPACE, track_name=NAME))
    message("request-update", request.RequestUpdate(request_id=10, parameters={0x10: 1, 0x20: 1}))
    message("request-update-prefix", request.RequestUpdate(request_id=12, parameters={0x34: NAMESPACE}))
    message("request-ok", request.RequestOk())
    message("request-ok-largest", request.RequestOk(parameters={0x09: (9, 9)}))
    message("request-error", request.RequestError(error_code=0x10, retry_interval=5001, reason="no such track"))
    message("request-error-redirect", request.RequestError(
        error_code=0x34, reason="", redirect=(b"moqt://other/", NAMESPACE, NAME)))
    # Inclusive in draft 20, one more in 18: aiomoqt takes the older form and turns it into the newer.
    fetching("fetch-range", FetchType.STANDALONE, namespace=NAMESPACE, track_name=NAME, start_group=2, start_object=1,
             end_group=4, end_object=10)
    fetching("fetch-groups", FetchType.STANDALONE, namespace=NAMESPACE, track_name=NAME, start_group=2, start_object=1,
             end_group=4, end_object=0)
    if DRAFT == 18:
        fetching("fetch-relative", FetchType.RELATIVE_JOINING, joining_request_id=2, joining_start=1)
        fetching("fetch-absolute", FetchType.ABSOLUTE_JOINING, joining_request_id=2, joining_start=40)
        message("goaway-request", session_setup.GoAway(new_session_uri="moqt://other/", timeout=5000, request_id=6))
    else:
        message("goaway", session_setup.GoAway(new_session_uri="moqt://other/", timeout=5000))
        subscription("subscribe-relative", location_filter=LocationFilter.relative(2))
        subscription("subscribe-range", location_filter=LocationFilter.absolute(5, 3, 9, 1))
        subscription("subscribe-all", location_filter=LocationFilter.none())
        subscription("subscribe-fill", parameters={
            0x23: {0x0A: 250, 0x20: 9, 0x21: LocationFilter.relative(1), 0x22: 2}, 0x35: 0})
        subscription("subscribe-ranges", parameters={
            0x26: RangeFilter(set_id=1, ranges=((3, 5), (10, 15))),
            0x28: RangeFilter(set_id=0, property_type=16, ranges=((7, None),))})
        message("publish-state-notify", d20.PublishStateNotify(parameters={0x09: (4, 4), 0x10: 0}))
    subgroup_stream("subgroup")
    show("datagram", data.ObjectDatagram(9, 3, 500, 1, payload=b"payload").serialize(prof=PROFILE))
    show("datagram-status", data.ObjectDatagram(9, 3, 500, 1, status=ObjectStatus.END_OF_TRACK).serialize(prof=PROFILE))
    fetch_stream("fetch-stream", GroupOrder.ASCENDING)
    fetch_stream("fetch-stream-descending", GroupOrder.DESCENDING)


main()
