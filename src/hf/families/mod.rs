//! The model families. A family is one file here and one line in [`ALL`]; `CONTRIBUTING.md` says how to add one.

mod deepseek;
mod dots1;
mod ernie;
mod gpt_oss;
mod granite;
mod lfm2;
mod llama4;
mod minimax;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;

use anyhow::Result;

use super::{Config, Conversion, Lazy};

/// How the checkpoints of a family become a model that llama.cpp runs.
#[derive(Debug)]
pub struct Family {
    /// The names in `architectures` of `config.json`.
    pub architectures: &'static [&'static str],
    /// llama.cpp's name, the value of `general.architecture`.
    pub arch: &'static str,
    /// Modules and their GGUF names, where they differ from what most families share.
    pub names: &'static [(&'static str, &'static str)],
    /// The projections of experts that are stored one by one, with their GGUF names, in the order in which
    /// they are written.
    pub expert_order: &'static [(&'static str, &'static str)],
    /// Corrects parameters before anything else uses them.
    pub prepare: fn(&mut Config) -> Result<()>,
    /// Adds tensors that the checkpoint does not hold, and layers beyond the stated ones.
    pub extra: fn(&mut Conversion) -> Result<()>,
    /// Adds what one tensor of the checkpoint becomes.
    pub tensor: fn(&mut Conversion, &str, Lazy) -> Result<()>,
    /// Sets the keys of the parameters.
    pub parameters: fn(&mut Conversion) -> Result<()>,
}

/// Experts stored as `experts.N.{gate,up,down}_proj`, in the order of their names.
const PROJECTIONS: &[(&str, &str)] = &[
    ("down_proj", "ffn_down_exps"),
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
];

/// Experts stored as `experts.N.w1` (gate), `w2` (down) and `w3` (up).
const NUMBERED: &[(&str, &str)] = &[
    ("w1", "ffn_gate_exps"),
    ("w2", "ffn_down_exps"),
    ("w3", "ffn_up_exps"),
];

/// What a family is unless it says otherwise.
const DEFAULT: Family = Family {
    architectures: &[],
    arch: "",
    names: &[],
    expert_order: PROJECTIONS,
    prepare: |_| Ok(()),
    extra: |_| Ok(()),
    tensor: |c, name, tensor| c.add(name, tensor),
    parameters: |c| c.base_parameters(),
};

/// Every family.
pub static ALL: &[&Family] = &[
    &deepseek::FAMILY,
    &dots1::FAMILY,
    &ernie::FAMILY,
    &gpt_oss::FAMILY,
    &granite::FAMILY,
    &lfm2::FAMILY,
    &llama4::FAMILY,
    &minimax::FAMILY,
    &mixtral::FAMILY,
    &olmoe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
];

/// The family of an architecture.
pub fn find(architecture: &str) -> Option<&'static Family> {
    ALL.iter()
        .find(|f| f.architectures.contains(&architecture))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_overlap() {
        for family in ALL {
            assert!(!family.architectures.is_empty() && !family.arch.is_empty());
            for architecture in family.architectures {
                assert!(
                    std::ptr::eq(find(architecture).unwrap(), *family),
                    "{architecture}"
                );
            }
        }
        assert!(find("NoSuchForCausalLM").is_none());
    }
}
