"""A server process with `DiscSam`, to be killed: `python serve_discs.py CONFIG.json`, like samtrain.annotator.serve."""

from __future__ import annotations

import sys

from disc_sam import load_disc_sam

from samtrain.annotator import encoding, serve

if __name__ == "__main__":
    encoding.load_sam = load_disc_sam  # type: ignore[assignment]
    sys.argv = ["serve", "--config", sys.argv[1]]
    serve.main()
