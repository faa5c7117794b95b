"""A loopback stand-in for the Messages API, good enough for the real agent CLI.

Owns one ``ThreadingHTTPServer`` on 127.0.0.1. It answers with the last thing the user said and
is scripted by that text itself, so that a test in another process can steer it too: a line such
as ``[status=429 retry_after=1] hello`` or ``[parts=20 delay_s=0.1] hello`` anywhere in it.

========================  =====================================================================
``parts=N``               stream the answer in N pieces (1 unless told)
``delay_s=X``             pause X seconds before every piece
``status=N``              answer with that HTTP status and an API error
``retry_after=X``         send this ``retry-after`` header along with the status
``shape=count``           answer with the number of user messages that the request carried
``tool=NAME``             use that tool, the text is its input as JSON; what it gives, or why it was
                          denied, is the next thing the user "says"
========================  =====================================================================

Invariants: it never looks anything up, never connects anywhere, and forgets authorization
headers at once.
"""

from tests.api_stub.server import ApiStub, RecordedRequest

__all__ = ["ApiStub", "RecordedRequest"]
