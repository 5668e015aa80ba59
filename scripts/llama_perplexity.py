"""llama.cpp's llama-perplexity for the measuring scripts."""

import os
import re
import subprocess
from pathlib import Path

FIGURES = {
    "kld": r"Mean\s+KLD:\s+(-?[\d.]+)",
    "kld_error": r"Mean\s+KLD:\s+-?[\d.]+ ±\s+([\d.]+)",
    "ppl": r"Mean PPL\(Q\)\s+:\s+([\d.]+)",
    "ppl_ratio": r"Mean PPL\(Q\)/PPL\(base\)\s+:\s+([\d.]+)",
    "same_top": r"Same top p:\s+([\d.]+)",
}


def keeping_the_log(environment=None):
    """The environment in which llama.cpp's programs say their last lines (scripts/llama-log.c)."""
    library = subprocess.run([Path(__file__).parent / "llama-log"], check=True, capture_output=True, text=True).stdout
    return {**(os.environ if environment is None else environment), "LD_PRELOAD": library.strip()}


def divergence(command, environment=None):
    """Runs a llama-perplexity with `--kl-divergence` and returns its figures, and what it said."""
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace",
                       env=keeping_the_log(environment))
    said = r.stdout + r.stderr
    found = {name: re.search(pattern, said) for name, pattern in FIGURES.items()}
    if r.returncode == 0 and all(found.values()):
        return {name: float(match.group(1)) for name, match in found.items()}, said
    raise SystemExit(f"{' '.join(map(str, command))}: status {r.returncode}, no figures\n{said[-3000:]}")
