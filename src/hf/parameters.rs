//! The parameters that most families share, in llama.cpp's keys.

use anyhow::{Result, ensure};
use serde_json::{Map, Value as Json};

use super::Conversion;
use super::config::as_u32;
use crate::gguf::{Array, Value};

/// `expert_gating_func` of a softmax over the experts (`LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX`).
const GATING_SOFTMAX: u32 = 1;
/// `expert_gating_func` of a sigmoid for each expert.
pub(super) const GATING_SIGMOID: u32 = 2;

impl Conversion {
    /// Sets the keys that llama.cpp's converter takes from every model's parameters, in its order.
    ///
    /// # Errors
    /// A field has a value that it cannot have.
    pub fn base_parameters(&mut self) -> Result<()> {
        self.set("block_count", self.n_layer());
        const SIZES: &[(&str, &[&str])] = &[
            (
                "context_length",
                &[
                    "max_position_embeddings",
                    "n_ctx",
                    "n_positions",
                    "max_length",
                    "max_sequence_length",
                    "model_max_length",
                ],
            ),
            ("embedding_length", &["hidden_size", "n_embd", "dim"]),
            (
                "feed_forward_length",
                &[
                    "prefix_dense_intermediate_size",
                    "dense_intermediate_size",
                    "intermediate_size",
                    "n_inner",
                    "hidden_dim",
                ],
            ),
            (
                "attention.head_count",
                &["num_attention_heads", "n_head", "n_heads"],
            ),
            (
                "attention.head_count_kv",
                &["num_key_value_heads", "n_kv_heads"],
            ),
        ];
        self.set_sizes(SIZES)?;
        self.rope_parameters()?;
        for (key, fields) in [
            (
                "attention.layer_norm_rms_epsilon",
                ["rms_norm_eps", "norm_eps", ""],
            ),
            (
                "attention.layer_norm_epsilon",
                ["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"],
            ),
        ] {
            if let Some((field, _)) = self.config.find(&fields) {
                self.set_f32(key, field)?;
            }
        }
        const EXPERTS: &[(&str, &[&str])] = &[
            (
                "expert_count",
                &["num_local_experts", "num_experts", "n_routed_experts"],
            ),
            (
                "expert_used_count",
                &[
                    "num_experts_per_tok",
                    "num_experts_per_token",
                    "top_k_experts",
                ],
            ),
            ("expert_group_count", &["n_group"]),
            ("expert_group_used_count", &["topk_group"]),
        ];
        self.set_sizes(EXPERTS)?;
        const GATING: &[&str] = &[
            "score_function",
            "scoring_func",
            "score_func",
            "moe_router_activation",
            "moe_router_activation_func",
            "expert_selection_fn",
        ];
        if let Some((field, value)) = self.config.find(GATING) {
            let gating = match value.as_str() {
                Some("sigmoid") => GATING_SIGMOID,
                Some("softmax") => GATING_SOFTMAX,
                _ => {
                    return Err(self
                        .config
                        .error(field, format!("is {value}, neither sigmoid nor softmax")));
                }
            };
            self.set("expert_gating_func", gating);
        }
        if let Some(head_dim) = self.config.opt_u32("head_dim")? {
            self.set("attention.key_length", head_dim);
            self.set("attention.value_length", head_dim);
        }
        let file_type = self.file_type();
        self.set_general("general.file_type", file_type);
        Ok(())
    }

    /// Sets the gating function where `config.json` leaves it out because the family has only this one. Without
    /// the key llama.cpp would take another function, or end the process.
    pub(super) fn gate_by_default(&mut self, function: u32) {
        if !self.is_set("expert_gating_func") {
            self.set("expert_gating_func", function);
        }
    }

    /// Sets each key from the first of its fields that is present: a size, or one a layer.
    fn set_sizes(&mut self, keys: &[(&str, &[&str])]) -> Result<()> {
        for (key, fields) in keys {
            let Some((field, value)) = self.config.find(fields) else {
                continue;
            };
            if value.is_array() {
                let sizes = self.config.opt_u32s(field)?.unwrap_or_default();
                ensure!(
                    sizes.len() == self.n_layer() as usize,
                    self.config.error(
                        field,
                        format!("has {} values for {} layers", sizes.len(), self.n_layer())
                    )
                );
                let sizes = sizes.into_iter().map(|n| n as i32).collect();
                self.set(key, Value::Array(Array::I32(sizes)));
            } else {
                self.set_u32(key, field)?;
            }
        }
        Ok(())
    }

    fn rope_parameters(&mut self) -> Result<()> {
        let all = self.config.rope();
        let rope = match all.get("full_attention") {
            Some(Json::Object(full)) => full.clone(),
            _ => all.clone(),
        };
        let factor = self.rope_f32(&rope, "factor")?;
        match (rope.get("rope_type").and_then(Json::as_str), factor) {
            (Some("linear"), Some(factor)) => {
                self.set("rope.scaling.type", "linear");
                self.set("rope.scaling.factor", factor);
            }
            (Some("yarn"), Some(factor)) => {
                self.set("rope.scaling.type", "yarn");
                self.set("rope.scaling.factor", factor);
                const LENGTH: &str = "original_max_position_embeddings";
                let length = rope.get(LENGTH).and_then(as_u32);
                ensure!(
                    length.is_some(),
                    self.config.error(
                        &format!("rope_parameters.{LENGTH}"),
                        "is missing or no size, though the type is yarn"
                    )
                );
                self.set("rope.scaling.original_context_length", length.unwrap_or(0));
                for (key, fields) in [
                    ("yarn_ext_factor", ["extrapolation_factor", ""]),
                    ("yarn_attn_factor", ["attention_factor", "attn_factor"]),
                    ("yarn_beta_fast", ["beta_fast", ""]),
                    ("yarn_beta_slow", ["beta_slow", ""]),
                ] {
                    let field = fields
                        .iter()
                        .find(|f| rope.get(**f).is_some_and(|v| !v.is_null()));
                    if let Some(field) = field
                        && let Some(value) = self.rope_f32(&rope, field)?
                    {
                        self.set(&format!("rope.scaling.{key}"), value);
                    }
                }
            }
            (Some("su" | "longrope"), _) => self.set("rope.scaling.type", "longrope"),
            _ => {}
        }
        if let Some(theta) = self.rope_f32(&rope, "rope_theta")? {
            self.set("rope.freq_base", theta);
        }
        if let Some(Json::Object(local)) = all.get("sliding_attention") {
            let local = local.clone();
            if let Some(theta) = self.rope_f32(&local, "rope_theta")? {
                self.set("rope.freq_base_swa", theta);
            }
        }
        Ok(())
    }

    /// A number among the rotary encoding's parameters.
    ///
    /// # Errors
    /// It is not a finite number.
    pub fn rope_f32(&self, rope: &Map<String, Json>, field: &str) -> Result<Option<f32>> {
        let Some(value) = rope.get(field).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        ensure!(
            number.is_some(),
            self.config.error(
                &format!("rope_parameters.{field}"),
                format!("is {value}, not a number")
            )
        );
        Ok(number)
    }

    /// Rotary dimensions when only a part of the head is rotated.
    ///
    /// # Errors
    /// The fields it follows from are missing or not numbers.
    pub fn partial_rotary_dims(&self, default_part: f32) -> Result<u32> {
        let rope = self.config.rope();
        let part = self
            .rope_f32(&rope, "partial_rotary_factor")?
            .unwrap_or(default_part);
        Ok((f64::from(self.config.head_dim()?) * f64::from(part)) as u32)
    }

    /// Factors of the rotary frequencies for models extended as Llama 3 (`rope_type` llama3): frequencies whose
    /// wavelength exceeds the original context are slowed, those between are interpolated.
    ///
    /// # Errors
    /// A parameter is not a number.
    pub fn llama3_rope_factors(&self, default_factor: f32) -> Result<Option<Vec<f32>>> {
        let all = self.config.rope();
        let rope = match all.get("full_attention") {
            Some(Json::Object(full)) => full,
            _ => &all,
        };
        let kind = rope.get("rope_type").and_then(Json::as_str);
        if !kind.is_some_and(|k| k.eq_ignore_ascii_case("llama3")) {
            return Ok(None);
        }
        let number = |field: &str, default: f32| -> Result<f32> {
            Ok(self.rope_f32(rope, field)?.unwrap_or(default))
        };
        let base = number("rope_theta", 10_000.0)?;
        let factor = number("factor", default_factor)?;
        let low = number("low_freq_factor", 1.0)?;
        let high = number("high_freq_factor", 4.0)?;
        let context = number("original_max_position_embeddings", 8192.0)?;
        let dim = self.config.head_dim()?;
        ensure!(dim <= 65_536, self.config.error("head_dim", "is too large"));
        let factors = (0..dim.div_ceil(2))
            .map(|i| {
                let freq = 1.0 / base.powf((2 * i) as f32 / dim as f32);
                let wavelength = 2.0 * std::f32::consts::PI / freq;
                if wavelength < context / high {
                    1.0
                } else if wavelength > context / low {
                    factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect();
        Ok(Some(factors))
    }
}
