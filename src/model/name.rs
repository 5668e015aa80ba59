//! The parts of a llama.cpp tensor name.

/// Endings that say what a tensor is to the operation it belongs to. A name may lack one (`blk.0.ssm_a`).
const SUFFIXES: [&str; 4] = ["weight", "bias", "scale", "input_scale"];

/// The layer of a tensor named `blk.N.rest`.
pub fn layer_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// A tensor name taken apart: `blk.3.ffn_up_exps.weight` is layer 3, stem `ffn_up_exps`, suffix `weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorName {
    /// The stack a numbered layer belongs to: `blk`, or for instance `dec.blk`; empty without a layer.
    pub stack: String,
    /// The layer's number.
    pub layer: Option<usize>,
    /// The number of the expert, if every expert has a tensor of its own (`blk.3.ffn_up.7.weight`).
    pub expert: Option<usize>,
    /// What remains between layer and suffix.
    pub stem: String,
    /// One of [`SUFFIXES`], or empty.
    pub suffix: &'static str,
}

impl TensorName {
    pub fn parse(name: &str) -> TensorName {
        let mut parts: Vec<&str> = name.split('.').collect();

        let mut suffix = "";
        if parts.len() > 1
            && let Some(known) = SUFFIXES.iter().find(|s| parts.last() == Some(s))
        {
            suffix = known;
            parts.pop();
        }

        let mut stack = String::new();
        let mut layer = None;
        if let Some(at) = parts.iter().position(|p| *p == "blk")
            && parts.len() > at + 2
            && let Some(n) = number(parts[at + 1])
        {
            stack = parts[..=at].join(".");
            layer = Some(n);
            parts.drain(..=at + 1);
        }

        let mut expert = None;
        if layer.is_some()
            && let [stem, last] = parts[..]
            && matches!(stem, "ffn_gate" | "ffn_up" | "ffn_down")
            && let Some(n) = number(last)
        {
            expert = Some(n);
            parts.pop();
        }

        TensorName {
            stack,
            layer,
            expert,
            stem: parts.join("."),
            suffix,
        }
    }

    /// The name without the numbers of layer and expert: `blk.ffn_up_exps.weight`, `blk.ffn_up.E.weight`.
    pub fn class(&self) -> String {
        let expert = if self.expert.is_some() { "E" } else { "" };
        [&self.stack, self.stem.as_str(), expert, self.suffix]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(".")
    }
}

/// A decimal number as llama.cpp prints it: digits without a leading zero.
fn number(text: &str) -> Option<usize> {
    let canonical =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str) -> (Option<usize>, Option<usize>, String, &'static str, String) {
        let n = TensorName::parse(name);
        (n.layer, n.expert, n.stem.clone(), n.suffix, n.class())
    }

    #[test]
    fn names_come_apart() {
        for (name, layer, expert, stem, suffix, class) in [
            (
                "blk.12.ffn_up_exps.weight",
                Some(12),
                None,
                "ffn_up_exps",
                "weight",
                "blk.ffn_up_exps.weight",
            ),
            (
                "blk.0.ffn_up.7.weight",
                Some(0),
                Some(7),
                "ffn_up",
                "weight",
                "blk.ffn_up.E.weight",
            ),
            (
                "blk.0.exp_probs_b.bias",
                Some(0),
                None,
                "exp_probs_b",
                "bias",
                "blk.exp_probs_b.bias",
            ),
            ("blk.1.ssm_a", Some(1), None, "ssm_a", "", "blk.ssm_a"),
            (
                "blk.1.shortconv.conv.weight",
                Some(1),
                None,
                "shortconv.conv",
                "weight",
                "blk.shortconv.conv.weight",
            ),
            (
                "dec.blk.2.attn_q.weight",
                Some(2),
                None,
                "attn_q",
                "weight",
                "dec.blk.attn_q.weight",
            ),
            (
                "output.weight",
                None,
                None,
                "output",
                "weight",
                "output.weight",
            ),
            ("weight", None, None, "weight", "", "weight"),
            (
                "blk.x.attn_q.weight",
                None,
                None,
                "blk.x.attn_q",
                "weight",
                "blk.x.attn_q.weight",
            ),
            (
                "blk.99999999999999999999.a.weight",
                None,
                None,
                "blk.99999999999999999999.a",
                "weight",
                "blk.99999999999999999999.a.weight",
            ),
            (
                "blk.07.a.weight",
                None,
                None,
                "blk.07.a",
                "weight",
                "blk.07.a.weight",
            ),
            ("", None, None, "", "", ""),
        ] {
            assert_eq!(
                parts(name),
                (layer, expert, stem.to_owned(), suffix, class.to_owned()),
                "{name}"
            );
        }
    }
}
