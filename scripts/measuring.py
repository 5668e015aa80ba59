"""Where the measuring scripts find things, and how they name the calibration text's domains."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MOQA_SHARED", ROOT.parent / "shared"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moqa"
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "target")) / "release"
MOQA = RELEASE / "moqa"
MODEL = ROOT / "tests/models/lab-moe.gguf"


def labelled(text):
    """A folder's files as domains for moqa's --text, a file as it is."""
    return [f"{f.stem}={f}" for f in sorted(text.glob("*.txt"))] if text.is_dir() else [text]
