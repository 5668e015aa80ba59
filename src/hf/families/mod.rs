//! The model families. A family is one file here and one line in [`ALL`]; `CONTRIBUTING.md` says how to add one.

mod afmoe;
mod bailing_moe;
mod deepseek;
mod dots1;
mod ernie;
mod exaone_moe;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod hunyuan_moe;
mod lfm2;
mod llama4;
mod minimax;
mod mixtral;
mod olmoe;
mod phi_moe;
mod qwen2_moe;
mod qwen3_moe;
mod qwen3_next;

use anyhow::Result;

use super::names::HfName;
use super::{Config, Conversion, Folder, Lazy};

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
    pub extra: fn(&mut Conversion, &Folder) -> Result<()>,
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
    extra: |_, _| Ok(()),
    tensor: |c, name, tensor| c.add(name, tensor),
    parameters: |c| c.base_parameters(),
};

/// Every family.
pub static ALL: &[&Family] = &[
    &afmoe::FAMILY,
    &bailing_moe::FIRST,
    &bailing_moe::SECOND,
    &deepseek::FAMILY,
    &dots1::FAMILY,
    &ernie::FAMILY,
    &exaone_moe::FAMILY,
    &glm4_moe::FAMILY,
    &gpt_oss::FAMILY,
    &granite::FAMILY,
    &hunyuan_moe::FAMILY,
    &lfm2::FAMILY,
    &llama4::FAMILY,
    &minimax::FAMILY,
    &mixtral::FAMILY,
    &olmoe::FAMILY,
    &phi_moe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &qwen3_next::FAMILY,
];

/// Adds the layers that predict further tokens and follow the model's own, if the checkpoint has them.
/// `prefix` is what their numbers stand after: numbers after `mtp.layers.` count from 0, others go on from the
/// model's layers.
fn add_mtp_layers(c: &mut Conversion, folder: &Folder, prefix: &str) -> Result<()> {
    let own = c.n_layer();
    let first = if prefix.starts_with("mtp.") { 0 } else { own };
    let highest = folder
        .tensors
        .iter()
        .filter_map(|t| {
            let (number, _) = t.name.strip_prefix(prefix)?.split_once('.')?;
            number.parse::<u32>().ok()
        })
        .max();
    if let Some(highest) = highest
        && highest >= first
    {
        let most = c
            .config
            .opt_u32("num_nextn_predict_layers")?
            .or(c.config.opt_u32("mtp_num_hidden_layers")?)
            .unwrap_or(1);
        // More than are stated is an error of the checkpoint, found when their tensors are added.
        c.add_layers((highest - first).saturating_add(1).min(most));
    }
    Ok(())
}

/// The name of a tensor of a layer that predicts further tokens, `mtp.*`, as that of a layer after the others.
fn mtp_name(c: &Conversion, name: &str) -> Result<String> {
    let inner = name.strip_prefix("model.").unwrap_or(name);
    let Some(rest) = inner.strip_prefix("mtp.") else {
        return Ok(name.to_owned());
    };
    let own = c.config.n_layer()?;
    let numbered = HfName::parse(rest);
    if let Some(layer) = numbered.layer {
        let (_, module) = rest["layers.".len()..].split_once('.').unwrap_or(("", ""));
        return Ok(format!(
            "model.layers.{}.{module}",
            own.saturating_add(layer)
        ));
    }
    let module = match numbered.module {
        "fc" => "eh_proj",
        "pre_fc_norm_embedding" => "enorm",
        "pre_fc_norm_hidden" => "hnorm",
        "norm" => "shared_head.norm",
        other => other,
    };
    Ok(format!("model.layers.{own}.{module}.{}", numbered.suffix))
}

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
