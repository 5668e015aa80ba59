//! Choosing the types.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::candidates::Candidates;
use super::cost::CostModel;
use super::knapsack::{self, Choice, KnapsackError};
use super::recipe::{Plan, TensorChoice};
use crate::analysis::{Analysis, Importance};
use crate::encode::{output_metadata, shard_layouts};
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::model::ModelView;

/// How large the file may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the whole file.
    Bytes(u64),
    /// Bits per weight of the tensor data, metadata not counted, as llama-quantize prints it.
    BitsPerWeight(f64),
}

/// What a plan is made from.
pub struct PlanInputs<'a> {
    /// The model.
    pub source: &'a Gguf,
    /// What its tensors are.
    pub view: &'a ModelView,
    /// What was measured.
    pub analysis: &'a Analysis,
    /// Importance of input channels.
    pub importance: &'a Importance,
    /// Types to choose from.
    pub candidates: &'a Candidates,
    /// What the file will record, for its exact size.
    pub records: &'a [(&'a str, String)],
}

impl<'a> PlanInputs<'a> {
    /// The tensors that get a choice, with their candidate types.
    pub fn choices(
        source: &'a Gguf,
        view: &ModelView,
        importance: &Importance,
        candidates: &Candidates,
    ) -> Vec<(&'a TensorInfo, Vec<GgmlType>)> {
        view.tensors
            .iter()
            .filter(|t| t.quantizable && crate::ggml::can_decode(source.tensors[t.index].ty))
            .map(|t| {
                let tensor = &source.tensors[t.index];
                let known = importance
                    .of(&tensor.name, 0, tensor.ne(0) as usize)
                    .is_some();
                (tensor, candidates.of(tensor, known))
            })
            .collect()
    }
}

/// Bytes of the file in which each tensor has the type that `types` names, or its own.
///
/// # Errors
/// A type does not fit.
pub fn plan_bytes(
    source: &Gguf,
    types: &BTreeMap<String, GgmlType>,
    records: &[(&str, String)],
) -> Result<u64> {
    let metadata = output_metadata(source, types, records);
    Ok(shard_layouts(source, &metadata, types, None)?
        .iter()
        .map(crate::gguf::GgufLayout::file_size)
        .sum())
}

/// Makes the plan with the smallest expected divergence within the budget.
///
/// # Errors
/// The budget is below the smallest possible file, or the data cannot be used.
pub fn make_plan(inputs: &PlanInputs<'_>, budget: Budget) -> Result<Plan> {
    let choices = PlanInputs::choices(
        inputs.source,
        inputs.view,
        inputs.importance,
        inputs.candidates,
    );
    if choices.is_empty() {
        bail!(
            "{}: no tensor of this model can be quantized",
            inputs.source.paths()[0].display()
        );
    }
    let n_weights: u64 = inputs.source.tensors.iter().map(TensorInfo::n_elems).sum();
    let smallest: BTreeMap<String, GgmlType> = choices
        .iter()
        .filter_map(|(t, types)| {
            let n_in = TensorInfo::ne(t, 0);
            let ty = types.iter().min_by_key(|ty| ty.row_bytes(n_in))?;
            Some((t.name.clone(), *ty))
        })
        .collect();
    // What does not depend on the choice: metadata, tensors that keep their type.
    let alignment = inputs.source.alignment;
    let padded = |t: &TensorInfo, ty: GgmlType| {
        ty.row_bytes(t.ne(0))
            .map(|row| (row * t.n_rows()).next_multiple_of(alignment))
            .unwrap_or(u64::MAX)
    };
    let smallest_file = plan_bytes(inputs.source, &smallest, inputs.records)?;
    let fixed = smallest_file
        - choices
            .iter()
            .map(|(t, _)| padded(t, smallest[&t.name]))
            .sum::<u64>();
    let budget_bytes = match budget {
        Budget::Bytes(n) => n,
        Budget::BitsPerWeight(bpw) => {
            let kept: u64 = inputs
                .source
                .tensors
                .iter()
                .filter(|t| !smallest.contains_key(&t.name))
                .map(TensorInfo::n_bytes)
                .sum();
            // Fixed bytes hold the kept tensors, which the bits per weight count too.
            (bpw * n_weights as f64 / 8.0) as u64 + fixed - kept
        }
    };

    let costs = CostModel::new(
        inputs.view,
        &inputs.analysis.probes,
        &inputs.analysis.errors,
    );
    let mut items = Vec::with_capacity(choices.len());
    for (tensor, types) in &choices {
        let item = types
            .iter()
            .map(|ty| {
                let error = inputs
                    .analysis
                    .errors
                    .get(&tensor.name, *ty)
                    .with_context(|| {
                        format!("tensor {}: its error in {ty} was not measured", tensor.name)
                    })?;
                Ok(Choice {
                    bytes: padded(tensor, *ty),
                    cost: costs.cost(&tensor.name, error),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        items.push(item);
    }
    let solution = match knapsack::solve(&items, budget_bytes.saturating_sub(fixed)) {
        Ok(s) => s,
        Err(KnapsackError::TooSmall { minimum, .. }) => bail!(
            "the budget of {} is too small: with the smallest allowed types the file has {}; allow more, or smaller types{}",
            crate::units::bytes(budget_bytes),
            crate::units::bytes(minimum + fixed),
            if inputs.analysis.weights.is_empty() {
                " (most types below 3 bits need importance data)"
            } else {
                ""
            }
        ),
        Err(e) => return Err(e.into()),
    };
    let tensors: Vec<TensorChoice> = choices
        .iter()
        .zip(&items)
        .zip(&solution.picks)
        .map(|(((tensor, types), item), &pick)| TensorChoice {
            name: tensor.name.clone(),
            ty: types[pick],
            bytes: types[pick]
                .row_bytes(TensorInfo::ne(tensor, 0))
                .unwrap_or(0)
                * tensor.n_rows(),
            error: inputs
                .analysis
                .errors
                .get(&tensor.name, types[pick])
                .unwrap_or(0.0),
            cost: item[pick].cost,
        })
        .collect();
    let mut plan = Plan {
        budget_bytes,
        objective: solution.cost,
        bound: solution.bound,
        exact: solution.exact,
        tensors,
        ..Plan::default()
    };
    let types = plan.types();
    plan.file_bytes = plan_bytes(inputs.source, &types, inputs.records)?;
    let data: u64 = inputs
        .source
        .tensors
        .iter()
        .map(|t| {
            types
                .get(&t.name)
                .and_then(|ty| ty.row_bytes(t.ne(0)))
                .map_or(t.n_bytes(), |r| r * t.n_rows())
        })
        .sum();
    plan.bpw = data as f64 * 8.0 / n_weights as f64;
    Ok(plan)
}
