"""A TCP forwarder on loopback that a test can cut and restore."""

import contextlib
import socket
import threading


class Forwarder:
    """Forwards each connection to ``endpoint``; ``cut`` breaks all, until ``restore``."""

    def __init__(self, endpoint):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)
        self._lock = threading.Lock()
        self._sockets = set()
        self._is_cut = False
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
        self._listener.close()

    def cut(self):
        with self._lock:
            self._is_cut = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def restore(self):
        with self._lock:
            self._is_cut = False

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                self._connect(near)

    def _connect(self, near):
        with self._lock:
            if self._is_cut:
                near.close()
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                return
            pair = {near, far}
            self.connections += 1
            self._sockets |= pair
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(source, target, pair), daemon=True).start()

    def _pump(self, source, target, pair):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with self._lock:
            for one in pair & self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            if source in self._sockets:
                self._sockets.discard(source)
        source.close()
