"""A small server that saves masks and answers when they are on disk; tests kill it.

`python saving.py URL` prints its port. A line "ANNOTATOR IMAGE REQUEST" saves a mask, and the answer is REQUEST.
"""

from __future__ import annotations

import socketserver
import sys

from store_objects import square

from samtrain.annotator.store import open_store


def main(url: str) -> None:
    store = open_store(url)

    class Person(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                annotator, image_id, request = line.decode().split()
                store.accept(int(image_id), annotator, square(seconds=1.0, request=request))
                self.wfile.write(f"{request}\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Person) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
