"""Hypothesis strategies for everything that crosses the wire, valid and not."""

import msgpack
from hypothesis import strategies as st

from soloist.protocol import content as c
from soloist.protocol import messages as m
from soloist.protocol.errors import ErrorInfo
from soloist.protocol.public import FIELDS, OF_BROKER

MAX_INT = 2**64 - 1

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
numbers = st.integers(0, MAX_INT)
durations = st.floats(0, 1e18)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), MAX_INT)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
maps = st.dictionaries(texts, values, max_size=2)

errors = st.builds(ErrorInfo, texts, texts, st.booleans(), st.none() | st.booleans(), maps)


def _with_tuples(value):
    """As the codec gives a value in a wire message: arrays are tuples."""
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return value


tuple_errors = errors.map(lambda info: info._replace(details=_with_tuples(info.details)))
leases = st.builds(m.Lease, numbers, st.binary(max_size=20), st.booleans())
WIRE = {
    m.Run: st.builds(m.Run, st.lists(leases, max_size=4).map(tuple), numbers),
    m.Interrupt: st.builds(m.Interrupt, numbers),
    m.Stop: st.builds(m.Stop, st.booleans()),
    m.Loaded: st.builds(m.Loaded, numbers, numbers, st.booleans()),
    m.Ready: st.builds(m.Ready),
    m.Broken: st.builds(m.Broken, st.booleans(), tuple_errors),
    m.Streamed: st.builds(m.Streamed, numbers, st.binary(max_size=20)),
    m.Answer: st.builds(
        m.Answer, numbers, durations | numbers, texts, numbers, st.binary(max_size=20)
    ),
    m.Failure: st.builds(m.Failure, numbers, durations | numbers, tuple_errors),
    m.Command: st.builds(m.Command, numbers, texts, st.binary(max_size=20)),
    m.ControlReply: st.builds(m.ControlReply, numbers, st.binary(max_size=20)),
    m.Vacant: st.builds(m.Vacant),
    m.Reuse: st.builds(m.Reuse, st.binary(max_size=20)),
    m.Snapshot: st.builds(m.Snapshot, numbers, st.binary(max_size=20)),
    m.Control: st.builds(m.Control, numbers, numbers, texts, st.binary(max_size=20)),
    m.Done: st.builds(m.Done, numbers),
    m.Refused: st.builds(m.Refused, numbers, tuple_errors),
    m.Ping: st.builds(m.Ping),
    m.Pong: st.builds(m.Pong),
    m.Chunk: st.builds(m.Chunk, numbers, st.lists(texts, max_size=4).map(tuple), numbers),
    m.Answers: st.lists(texts, max_size=4).flatmap(
        lambda answers: st.builds(
            m.Answers,
            numbers,
            st.binary(min_size=8 * len(answers), max_size=8 * len(answers)),
            st.just(tuple(answers)),
        )
    ),
}
wire_messages = st.one_of(*WIRE.values())

tool_inputs = maps
BLOCKS = {
    c.TextBlock: st.builds(c.TextBlock, texts),
    c.ThinkingBlock: st.builds(c.ThinkingBlock, texts, texts),
    c.ToolUseBlock: st.builds(c.ToolUseBlock, texts, texts, tool_inputs),
    c.ToolResultBlock: st.builds(
        c.ToolResultBlock,
        texts,
        st.none() | texts | st.lists(maps, max_size=2),
        st.none() | st.booleans(),
    ),
    c.ServerToolUseBlock: st.builds(c.ServerToolUseBlock, texts, texts, tool_inputs),
    c.ServerToolResultBlock: st.builds(c.ServerToolResultBlock, texts, maps),
}
unknown_blocks = st.builds(lambda block, name: {**block, "type": f"X{name}"}, maps, texts)
blocks = st.lists(st.one_of(*BLOCKS.values(), unknown_blocks), max_size=3)
_text = st.none() | texts
_map = st.none() | maps
_list = st.none() | st.lists(texts, max_size=2)
CONTENT = {
    c.UserMessage: st.builds(c.UserMessage, texts | blocks, _text, _text, _map, _map),
    c.AssistantMessage: st.builds(
        c.AssistantMessage,
        blocks,
        texts,
        parent_tool_use_id=_text,
        usage=_map,
        stop_reason=_text,
        user_message_uuids=_list,
    ),
    c.SystemMessage: st.builds(c.SystemMessage, texts, maps),
    c.StreamEvent: st.builds(c.StreamEvent, texts, texts, maps, _text, _text, _list),
    c.ResultMessage: st.builds(
        c.ResultMessage,
        texts,
        numbers,
        numbers,
        st.booleans(),
        numbers,
        texts,
        total_cost_usd=st.none() | durations,
        usage=_map,
        result=_text,
        structured_output=values,
        permission_denials=st.none() | st.lists(maps, max_size=2),
        errors=_list,
        api_error_status=st.none() | st.integers(100, 599),
        user_message_uuids=_list,
    ),
}
content_messages = st.one_of(*CONTENT.values())


def prompts():
    """Texts, and lists of content blocks as the Messages API has them."""
    block = st.builds(lambda fields, kind: {**fields, "type": kind}, maps, texts)
    return texts | st.lists(block, max_size=3)


# The public wire, as plain maps.
public_ids = st.binary(min_size=16, max_size=16)
_extra_keys = st.dictionaries(texts.map("x{}".format), values, max_size=2)
KINDS = {
    "id": public_ids,
    "id or nil": st.none() | public_ids,
    "bin of 16 to 64 bytes": st.binary(min_size=16, max_size=64),
    "uint": numbers,
    "array of uint": st.lists(numbers, max_size=3),
    "str": texts,
    "array of str": st.lists(texts, max_size=3),
    "bool": st.booleans(),
    "bool or nil": st.none() | st.booleans(),
    "map": maps,
    "array of maps": st.lists(maps, max_size=2),
    "array": st.lists(values, max_size=3),
    "str or array of maps": prompts(),
    "`cancel` or `finish`": st.sampled_from(["cancel", "finish"]),
}


def public_messages(name):
    """Valid messages of this type, with keys of a later version."""
    fields = FIELDS[name]
    required = {f.key: KINDS[f.kind.value] for f in fields if f.is_required}
    optional = {f.key: st.none() | KINDS[f.kind.value] for f in fields if not f.is_required}
    return st.builds(
        lambda fields, extra: {**extra, "v": 1, "type": name, **fields},
        st.fixed_dictionaries(required, optional=optional),
        _extra_keys,
    )


# What msgpack can say but no peer of ours may.
_foreign = st.sampled_from([msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2), float("nan")])
_keys = texts | st.binary(max_size=3) | st.integers(-5, 5) | st.booleans() | st.none()
garbage_values = st.recursive(
    scalars | _foreign,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)
_near_messages = st.builds(
    lambda tag, rest: [tag, *rest], st.integers(-1, len(WIRE) + 1), st.lists(values)
)
_typed_maps = st.builds(
    lambda fields, kind: {**fields, "type": kind},
    st.dictionaries(
        st.sampled_from(["content", "text", "model", "subtype", "data", "id", "name", "input"]),
        garbage_values,
    ),
    st.sampled_from([cls.__name__ for cls in (*CONTENT, *BLOCKS)]) | garbage_values,
)
_packed = (garbage_values | _near_messages | _typed_maps | st.lists(_typed_maps, max_size=2)).map(
    msgpack.packb
)
_valid = st.one_of(wire_messages, prompts(), maps).map(msgpack.packb)


@st.composite
def _damaged(draw):
    """Valid bytes, cut short, prolonged, or with one byte changed."""
    data = bytearray(draw(_valid | _packed))
    i = draw(st.integers(0, len(data) - 1))
    how = draw(st.sampled_from(["cut", "flip", "insert", "extend"]))
    if how == "cut":
        del data[i:]
    elif how == "flip":
        data[i] ^= draw(st.integers(1, 255))
    elif how == "insert":
        data.insert(i, draw(st.integers(0, 255)))
    else:
        data += draw(st.binary(min_size=1, max_size=4))
    return bytes(data)


garbage = st.binary(max_size=60) | _packed | _damaged()


@st.composite
def near_public_messages(draw, names=tuple(OF_BROKER)):
    """Valid messages with some of their keys gone or their values replaced, packed."""
    name = draw(st.sampled_from(sorted(names)))
    value = draw(public_messages(name))
    keys = ["v", "type", *(field.key for field in FIELDS[name])]
    for key in draw(st.lists(st.sampled_from(keys), max_size=3)):
        if draw(st.booleans()):
            value.pop(key, None)
        else:
            value[key] = draw(garbage_values | st.sampled_from(["QUERY", "CANCEL", 2, b"x" * 15]))
    return msgpack.packb(value)
