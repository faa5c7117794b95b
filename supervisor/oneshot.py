"""``soloist.query``: one prompt, one answer, with no Supervisor of one's own.

Owns one Supervisor of size 1 for each configuration that was asked for, made on first use and
ended with the process. Few of them live at a time: what was used longest ago is closed when its
requests have ended.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from soloist.protocol.codec import Prompt
from soloist.supervisor import usercode
from soloist.supervisor.api import ClientLike, Supervisor
from soloist.supervisor.control import Handler
from soloist.supervisor.response import Response

MAX_CONFIGURATIONS = 8
"""Most configurations that stay ready."""

_supervisors: OrderedDict[tuple[bytes, Handler | None], Supervisor] = OrderedDict()
_lock = threading.Lock()


def query(
    prompt: Prompt,
    *,
    client: ClientLike = "echo",
    options: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    on_control: Handler | None = None,
) -> Response:
    """Stream the messages of one prompt in a new conversation.

    The first call with a configuration starts a worker for it, which stays for the next ones.

    Args:
        prompt: text or content blocks.
        client: as for ``Supervisor``.
        options: keyword arguments of the client.
        timeout_s: seconds from the moment when the prompt is sent, the wait in the queue
            included.
        on_control: answers what the client asks its caller.

    Raises:
        InvalidOptions, ClientNotFound, ClientNotSerializable: as ``Supervisor``.
        InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.

    Reading it raises the request's error, after the messages that came before it.
    """
    key = (usercode.prepare(client, options or {}).data, on_control)
    with _lock:
        supervisor = _supervisors.pop(key, None)
        if supervisor is None or supervisor.is_closed:
            supervisor = Supervisor(1, client=client, options=options, on_control=on_control)
        _supervisors[key] = supervisor
        response = supervisor.query(prompt, timeout_s=timeout_s)
        _close_oldest()
    return response


def _close_oldest() -> None:
    while len(_supervisors) > MAX_CONFIGURATIONS:
        _, oldest = _supervisors.popitem(last=False)
        threading.Thread(target=oldest.close, args=(None,), daemon=True).start()
