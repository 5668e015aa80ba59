"""Compares llama-perplexity with and without the plugin on files of every type (scripts/check-plugin).

The models are made here, with random weights, by the key-value data and the tensors of the small reference conversions
under tests/oracle, eight times as wide, so that rows hold whole blocks of 256, and changed where llama.cpp refuses
them. Weights are scaled so that outputs are far from uniform: perplexity and KL divergence then depend on the experts.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from llama_perplexity import keeping_the_log

ROOT = Path(__file__).resolve().parent.parent
WIDER = 8
# Sizes of the references that grow; numbers of experts, heads and tokens do not.
WIDTHS = {16, 32, 48, 64, 96, 128}
KEYS = ("embedding_length", "feed_forward_length", "expert_feed_forward_length", "key_length", "value_length",
        "key_length_mla", "value_length_mla", "q_lora_rank", "kv_lora_rank", "dimension_count")
# Architecture, folder, changes. llama.cpp wants as many key heads as query heads of OLMoE, and ends the process on a
# Llama 4 without a layer that attends globally (every fourth). It knows DeepSeek-V2-Lite by its number of layers, so
# the deepseek2 architecture is that of V3.
MODELS = {
    "mixtral": ("mixtral", {}),
    "qwen3moe": ("qwen3_moe", {}),
    "olmoe": ("olmoe", {"key_heads": 4}),
    "deepseek2": ("deepseek_v3", {}),
    "granitemoe": ("granitemoe", {}),
    "gpt-oss": ("gpt_oss", {}),
    "llama4": ("llama4_text", {"layers": 4}),
}
# Preset of llama-quantize, and the type of the experts.
TYPES = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1",
    "Q8_0": "Q8_0", "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q4_K_S": "Q4_K", "Q5_K_S": "Q5_K", "Q6_K": "Q6_K",
    "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M", "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_S": "IQ3_S", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "TQ1_0": "TQ1_0",
    "TQ2_0": "TQ2_0", "MXFP4_MOE": "MXFP4", "Q1_0": "Q1_0", "Q2_0": "Q2_0",
}
EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.weight")
PRODUCTS = re.compile(r"freed a stream: \d+ graphs, (\d+) MUL_MAT_ID")
# Other ways in which llama.cpp computes the same without the plugin; what differs are roundings alone. Where an expert,
# above all an only one, was chosen by a near tie, a rounding becomes another expert. The plugin may differ from llama.cpp
# by as much as that from itself: the perplexity by this or TOLERANCE, the mean KL divergence, whose sign does not
# change and whose figures are thus steadier, by half more or SAME_KL.
WAYS = (["--no-repack", "-ub", "32"], ["-fa", "off"])
TOLERANCE = 0.002
SAME_KL = 0.0001
# Where a file fails or differs by more than TOLERANCE, so many times the text decides. With a KL divergence of 0.002 logarithms of probabilities differ by
# 0.06, which gives the mean of 2000 of them a standard error of 0.14 %.
MORE = 4


def make(name: str, path: Path) -> None:
    """Writes the random model of an architecture."""
    folder, changes = MODELS[name]
    reader = GGUFReader(ROOT / "tests/oracle" / folder / "reference-bf16.gguf")
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, architecture)
    head_count = f"{architecture}.attention.head_count"
    heads, key_heads = (reader.fields[k].contents() for k in (head_count, head_count + "_kv"))
    new_key_heads = changes.get("key_heads", key_heads)
    layers = changes.get("layers", reader.fields[f"{architecture}.block_count"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if key.split(".")[-1] in KEYS:
            value *= WIDER
        elif key == head_count + "_kv":
            value = new_key_heads
        elif key.endswith(".block_count"):
            value = layers
        if kind == GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    random = np.random.default_rng(1)
    blocks = sorted({t.name.split(".")[1] for t in reader.tensors if t.name.startswith("blk.")}, key=int)
    for tensor in reader.tensors:
        copies = [tensor.name]
        if layers > len(blocks) and tensor.name.startswith("blk."):
            _, block, rest = tensor.name.split(".", 2)
            copies = [f"blk.{i}.{rest}" for i in range(int(block), layers, len(blocks))]
        for copy in copies:
            # numpy's order: the last size is n_in
            shape = [int(n) * WIDER if int(n) in WIDTHS else int(n) for n in reversed(tensor.shape)]
            if new_key_heads != key_heads and re.search(r"attn_[kv](_norm)?\.", copy):
                shape[0] = shape[0] * new_key_heads // key_heads
            if copy.endswith("norm.weight"):
                values = 1 + 0.1 * random.standard_normal(shape)
            elif copy.endswith(".bias") or "sinks" in copy:
                values = 0.1 * random.standard_normal(shape)
            elif "token_embd" in copy:
                values = random.standard_normal(shape)
            else:
                # Routers that choose clearly: near ties turn a rounding into other experts.
                gain = {"ffn_gate_inp.weight": 3.0, "output.weight": 1.0}.get(re.sub(r"^blk\.\d+\.", "", copy), 1.0)
                values = random.standard_normal(shape) * gain / np.sqrt(shape[-1])
            values = values.astype(np.float32)
            if tensor.tensor_type == GGMLQuantizationType.F32 or copy.endswith("norm.weight"):
                writer.add_tensor(copy, values)
            else:
                bits = (values.view(np.uint32) >> 16).astype(np.uint16)
                writer.add_tensor(copy, bits.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Checker:
    def __init__(self, args, work: Path):
        self.args, self.work = args, work
        self.environment = keeping_the_log()
        self.chunks = args.chunks
        self.text = work / "text.txt"
        self.text.write_text("".join(f.read_text() for f in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))))

    def program(self, name: str, *arguments, environment=None):
        command = [Path(self.args.bin) / name, *map(str, arguments)]
        out = subprocess.run(command, capture_output=True, text=True, errors="replace",
                             env=self.environment | (environment or {}))
        return out.returncode, out.stdout + out.stderr

    def quantize(self, source: Path, imatrix: Path, preset: str, out: Path) -> str:
        """Quantizes all tensors, or, where that is refused, the experts. Returns how."""
        kind = TYPES[preset]
        ways = [("pure", ["--pure", source, out, preset])]
        ways.append(("experts", ["--tensor-type", f"ffn_.*_exps={kind.lower()}", source, out, "Q8_0"]))
        said = ""
        for way, arguments in ways:
            status, said = self.program("llama-quantize", "--imatrix", imatrix, *arguments, 1)
            if status:
                continue
            # Tensors that stay as they are, in BF16, are not converted.
            types = re.findall(r"_exps\.weight .*type = +(\w+), (?:.*converting to (\w+))?", said)
            types = {(new or old).upper() for old, new in types}
            if types == {kind}:
                return way
            said = f"experts are of {types}"
        raise RuntimeError(f"llama-quantize makes no {preset}: {said[-400:]}")

    def perplexity(self, model: Path, plugin: bool, *arguments) -> str:
        status, said = self.program(
            "llama-perplexity", "-m", model, "-f", self.text, "-c", 128, "-b", 128, "--chunks", self.chunks,
            "-t", self.args.threads, *arguments,
            environment={"GGML_BACKEND_PATH": self.args.plugin, "MOQA_LOG": "debug"} if plugin else {})
        if status:
            raise RuntimeError(f"llama-perplexity: status {status}: {said[-1500:]}")
        return said

    def differences(self, model: Path, logits: Path, plugin: bool, *arguments):
        """What a run differs by from the logits of another: perplexity, logarithm of the ratio of perplexities and
        mean KL divergence; and what the program said."""
        said = self.perplexity(model, plugin, "--kl-divergence-base", logits, "--kl-divergence", *arguments)
        figures = [re.search(pattern + r"\s*:\s+(-?[0-9.]+)", said)
                   for pattern in (r"Mean PPL\(Q\)", r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", "Mean +KLD")]
        if not all(figures):
            raise RuntimeError(f"llama-perplexity gives no figures: {said[-1500:]}")
        return tuple(float(f.group(1)) for f in figures), said

    def compare(self, model: Path, kind: str):
        """Compares the plugin with the CPU backend, and that with itself, on a model all of whose experts have a type.
        Returns the perplexities without and with the plugin; its difference in logarithm and its mean KL divergence;
        the largest of these between the CPU backend's ways; the products of the plugin."""
        logits = model.with_suffix(".logits")
        try:
            assert "MUL_MAT_ID" not in self.perplexity(model, False, "--kl-divergence-base", logits)
            floor = [self.differences(model, logits, False, *way)[0] for way in WAYS]
            ours, said = self.differences(model, logits, True)
        finally:
            logits.unlink(missing_ok=True)
        # What the plugin found, whatever llama-quantize said.
        types = {t.upper() for t in re.findall(r"_exps\.weight: (\w+) in the mapped file", said)}
        if types != {kind}:
            raise RuntimeError(f"the plugin took experts of {types}")
        with_it, ratio, kl = ours
        floor_ratio, floor_kl = (max(abs(figures[i]) for figures in floor) for i in (1, 2))
        products = sum(int(n) for n in PRODUCTS.findall(said))
        return with_it / math.exp(ratio), with_it, ratio, kl, floor_ratio, floor_kl, products

    def architecture(self, name: str, source: Path) -> tuple[int, int]:
        imatrix = self.work / f"{name}.imatrix.gguf"
        status, said = self.program("llama-imatrix", "-m", source, "-f", self.text, "-o", imatrix, "-c", 128,
                                    "--chunks", 8, "-t", self.args.threads)
        if status:
            raise RuntimeError(f"llama-imatrix: {said[-1500:]}")
        tensors = GGUFReader(source).tensors
        n_experts = sum(bool(EXPERTS.fullmatch(t.name)) for t in tensors)
        failed = 0
        presets = self.args.types or list(TYPES)
        for preset in presets:
            out = self.work / f"{name}-{preset}.gguf"
            good = False
            try:
                way = self.quantize(source, imatrix, preset, out)
                for self.chunks in (self.args.chunks, MORE * self.args.chunks):
                    without, with_it, ratio, kl, floor_ratio, floor_kl, products = self.compare(out, TYPES[preset])
                    good = (abs(ratio) <= max(TOLERANCE, floor_ratio) and kl <= 1.5 * floor_kl + SAME_KL
                            and products > 0 and products % n_experts == 0)
                    if good and abs(ratio) <= TOLERANCE:
                        break
            except RuntimeError as error:
                print(f"FAILED {name:<11} {preset:<9} {error}", flush=True)
                failed += 1
                continue
            finally:
                out.unlink(missing_ok=True)
            failed += not good
            print(f"{'ok    ' if good else 'FAILED'} {name:<11} {preset:<9} {way:<7} {without:10.4f} {with_it:10.4f} "
                  f"{100 * ratio:+8.4f} % {100 * floor_ratio:7.4f} % {kl:9.6f} {floor_kl:9.6f} {products:8} {self.chunks:6}", flush=True)
        return len(presets), failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--library", help="the plugin, unless --plugin names another")
    parser.add_argument("--plugin")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--only", type=lambda s: s.split(","))
    parser.add_argument("--types", type=lambda s: s.split(","))
    parser.add_argument("--model", action="append", type=Path, help="a float file to check besides")
    args = parser.parse_args()
    args.plugin = str(Path(args.plugin or args.library).resolve())
    if not Path(args.plugin).is_file():
        sys.exit(f"{args.plugin}: no such file; cargo build --release -p moqa-plugin makes it")
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(args, Path(folder))
        sources = {name: None for name in args.only or MODELS} if args.only or not args.model else {}
        sources |= {m.stem: m for m in args.model or []}
        if not args.only and not args.model:
            sources["lab-moe"] = ROOT / "tests/models/lab-moe.gguf"
        total = failed = 0
        print(f"{'architecture':>18} {'type':<17} {'perplexity':>11} {'plugin':>10} {'differs':>10} {'itself':>9} {'KL':>9} "
              f"{'itself':>9} products chunks")
        for name, source in sources.items():
            if source is None:
                source = Path(folder) / f"{name}.gguf"
                make(name, source)
            n, bad = checker.architecture(name, source)
            total, failed = total + n, failed + bad
        print(f"{total - failed} of {total} files agree")
        sys.exit(failed > 0)


main()
