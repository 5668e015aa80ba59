"""Runs one model in llama-cpp-python and writes its logits, or compares two such files (scripts/check-llama-cpp-python)."""

import argparse
import ctypes
import sys

import numpy as np


def run(model: str, text: str, threads: int, wrong_copy: bool) -> np.ndarray:
    """The next-token logits at the tokens of a text, [n_tokens, n_vocab], the token ids as a last column."""
    import llama_cpp
    from llama_cpp import _ggml, llama_cpp as bindings

    # ctypes opens with RTLD_LOCAL unless it is told otherwise: ggml's functions must not be in the global scope, or
    # this would test nothing.
    assert not hasattr(ctypes.CDLL(None), "ggml_backend_load_all"), "ggml is in the global scope"
    # The package does not load backends itself; this takes the one that GGML_BACKEND_PATH names. It must be libllama's
    # function: a wheel holds a second copy of libggml, with a registry of its own, for the package's own use.
    load_all = (_ggml.libggml if wrong_copy else bindings._lib).ggml_backend_load_all
    load_all.restype, load_all.argtypes = None, []
    load_all()
    llama = llama_cpp.Llama(
        model, n_ctx=512, n_batch=512, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=True
    )
    tokens = llama.tokenize(open(text, "rb").read())[:400]
    llama.eval(tokens)
    logits = np.array(llama.scores[: len(tokens)], dtype=np.float32)
    llama.close()
    return np.concatenate([logits, np.array(tokens, np.float32)[:, None]], axis=1)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def compare(reference: str, other: str) -> bool:
    a, b = np.load(reference), np.load(other)
    tokens = a[:, -1].astype(int)
    assert a.shape == b.shape and (tokens == b[:, -1].astype(int)).all(), "other tokens"
    p, q = (log_softmax(x[:, :-1].astype(np.float64)) for x in (a, b))
    kl = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    first, second = (float(np.exp(-x[np.arange(len(tokens) - 1), tokens[1:]].mean())) for x in (p, q))
    print(f"perplexity {second:.4f} with the plugin, {first:.4f} unpacked, mean KL divergence {kl:.6f} "
          f"({len(tokens)} tokens)")
    return abs(second / first - 1) < 0.01 and kl < 0.01


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", "--model")
    parser.add_argument("--text")
    parser.add_argument("--logits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wrong-copy", action="store_true", help="load backends with libggml.so, which libllama does not use")
    parser.add_argument("--compare", nargs=2)
    args = parser.parse_args()
    if args.compare:
        sys.exit(not compare(*args.compare))
    np.save(args.logits, run(args.model, args.text, args.threads, args.wrong_copy))


main()
