"""A node's console is found also when QEMU's socket is there before anybody listens to it."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from provisioner.lab.console import Console


def test_a_socket_that_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp_path / "serial"))

    def speak() -> None:
        time.sleep(0.3)
        server.listen(1)
        peer, _ = server.accept()
        peer.sendall(b"hello\r\n")
        peer.close()

    speaker = threading.Thread(target=speak)
    speaker.start()
    console = Console(tmp_path / "serial", tmp_path / "log")
    assert console.expect("hello", 10)
    speaker.join()
    console.close()
    server.close()


def test_a_socket_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Console(tmp_path / "serial", tmp_path / "log")
