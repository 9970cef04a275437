#!/usr/bin/env python3
"""Writes the references in docs/ that are made of code: `make references`. A test compares them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rouse_e2e import api_reference, metrics_reference, paths  # noqa: E402

DOCS = paths.REPOSITORY / "docs"
REFERENCES = {
    DOCS / "api-reference.md": api_reference.text,
    DOCS / "metrics.md": metrics_reference.text,
}


def main() -> int:
    for file, text in REFERENCES.items():
        file.write_text(text())
        print(file.relative_to(paths.REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
