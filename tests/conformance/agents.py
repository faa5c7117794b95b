"""The agent that the scenarios ask: it takes its time when the prompt says so."""

from __future__ import annotations

from typing import Any

from soloist.worker.clients.echo import EchoClient

SLOW_S = 60.0
"""What is cancelled, or killed, takes so long that no machine gets to its end by itself."""
LONG_S = 4.0


class PatientEcho(EchoClient):
    """Answers in 5 pieces at once; ``slow...`` in 1,200 within a minute, ``long...`` after 4 s."""

    async def query(self, prompt: Any) -> None:
        """Take the next prompt."""
        await super().query(prompt)
        self._delay_s, self._chunks = 0.0, 5
        if prompt.startswith("slow"):
            self._delay_s, self._chunks = SLOW_S, 1200
        elif prompt.startswith("long"):
            self._delay_s, self._chunks = LONG_S, 1
