"""The file that carries the client: its layout, and what is not such a file."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol import clientfile
from soloist.protocol.errors import RemoteProtocolError
from tests.protocol import strategies

WHOLE = ["contract", "module:name", "cloudpickle", b"code"]


@given(
    st.builds(
        clientfile.ClientFile,
        strategies.texts,
        strategies.texts,
        strategies.texts,
        st.binary(max_size=50),
    )
)
def test_comes_back_equal(client):
    assert clientfile.unpack(clientfile.pack(client)) == client


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("value", [None, 5, [], {}])
def test_with_a_field_of_another_type_is_refused(i, value):
    fields = [*WHOLE[:i], value, *WHOLE[i + 1 :]]
    with pytest.raises(RemoteProtocolError):
        clientfile.unpack(msgpack.packb(fields))


@pytest.mark.parametrize("value", [None, 5, "four", [], WHOLE[:3], [*WHOLE, b"more"]], ids=repr)
def test_that_holds_something_else_is_refused(value):
    with pytest.raises(RemoteProtocolError):
        clientfile.unpack(msgpack.packb(value))


@given(strategies.garbage)
def test_of_garbage_is_refused(data):
    try:
        client = clientfile.unpack(data)
    except RemoteProtocolError:
        return
    assert [type(field) for field in client] == [str, str, str, bytes]


def test_cut_short_is_refused():
    whole = clientfile.pack(clientfile.ClientFile(*WHOLE))
    for end in range(len(whole)):
        with pytest.raises(RemoteProtocolError):
            clientfile.unpack(whole[:end])
