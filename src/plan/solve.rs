//! Choosing the types.

use std::collections::BTreeMap;
use std::rc::Rc;

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
#[derive(Clone, Copy)]
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

/// Bytes that a mixed tensor needs beside its experts' blocks: a header with an entry an expert.
fn mixed_header_bytes(n_expert: u64) -> u64 {
    (MIXED_ALIGNMENT + 16 * n_expert).next_multiple_of(MIXED_ALIGNMENT)
}

/// Every expert of a mixed tensor begins at a multiple of this.
const MIXED_ALIGNMENT: u64 = 64;

/// Whether experts of one tensor share a type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// One type a tensor: a file that any llama.cpp runs.
    #[default]
    Tensor,
    /// A type for each expert of a merged tensor.
    Expert,
}

/// What gets one type: a tensor, or one expert of it.
struct Item<'a> {
    tensor: &'a TensorInfo,
    expert: Option<usize>,
    types: Vec<GgmlType>,
    /// What share of the tensor's output each of its matrices has: the same for all items of a tensor.
    shares: Rc<[f64]>,
}

impl<'a> Item<'a> {
    fn of(
        tensor: &'a TensorInfo,
        types: Vec<GgmlType>,
        granularity: Granularity,
        analysis: &Analysis,
    ) -> impl Iterator<Item = Item<'a>> {
        let n_mat = tensor.dims.ne(2) as usize;
        let experts: Vec<Option<usize>> = if granularity == Granularity::Expert && n_mat > 1 {
            (0..n_mat).map(Some).collect()
        } else {
            vec![None]
        };
        let traffic = analysis.traffic(&tensor.name);
        let shares = analysis.errors.shares(&tensor.name, &traffic);
        let shares: Rc<[f64]> = shares.unwrap_or_default().into();
        experts.into_iter().map(move |expert| Item {
            tensor,
            expert,
            types: types.clone(),
            shares: Rc::clone(&shares),
        })
    }

    /// Bytes in a type, padding included.
    fn bytes(&self, ty: GgmlType, alignment: u64) -> u64 {
        let (rows, alignment) = match self.expert {
            Some(_) => (self.tensor.dims.ne(1), MIXED_ALIGNMENT),
            None => (self.tensor.n_rows(), alignment),
        };
        let row = ty.row_bytes(self.tensor.dims.ne(0));
        row.map_or(u64::MAX, |row| (row * rows).next_multiple_of(alignment))
    }

    /// Expected divergence in a type, and the relative error behind it.
    fn cost(&self, ty: GgmlType, analysis: &Analysis, costs: &CostModel) -> Result<(f64, f64)> {
        let name = &self.tensor.name;
        let missing = || format!("tensor {name}: its error in {ty} was not measured");
        let errors = analysis.errors.tensor(name).with_context(missing)?;
        let of_matrix = errors.by_type.get(&ty).with_context(missing)?;
        match self.expert {
            None => {
                let error = of_matrix
                    .iter()
                    .zip(&*self.shares)
                    .map(|(r, s)| r * s)
                    .sum();
                Ok((costs.cost(name, error), error))
            }
            Some(e) => {
                let error = *of_matrix.get(e).with_context(missing)?;
                let share = *self.shares.get(e).with_context(missing)?;
                // The expert's part of what the tensor would cost if all experts had this error.
                Ok((share * costs.cost(name, error), error))
            }
        }
    }
}

/// Expected divergence of a plan by an analysis, which may be of another mix of domains than it was made for.
pub fn expected_divergence(plan: &Plan, analysis: &Analysis, costs: &CostModel) -> f64 {
    let of = |t: &TensorChoice| -> Option<f64> {
        let traffic = analysis.traffic(&t.name);
        if t.experts.is_empty() {
            return Some(costs.cost(&t.name, analysis.errors.relative(&t.name, t.ty, &traffic)?));
        }
        let errors = analysis.errors.tensor(&t.name)?;
        let shares = analysis.errors.shares(&t.name, &traffic)?;
        let each = t.experts.iter().zip(shares).enumerate();
        each.map(|(e, (ty, share))| {
            let error = errors.by_type.get(ty)?.get(e)?;
            Some(share * costs.cost(&t.name, *error))
        })
        .sum()
    };
    plan.tensors.iter().filter_map(of).sum()
}

/// Makes the plan with the smallest expected divergence within the budget.
///
/// # Errors
/// The budget is below the smallest possible file, or the data cannot be used.
pub fn make_plan(
    inputs: &PlanInputs<'_>,
    budget: Budget,
    granularity: Granularity,
) -> Result<Plan> {
    let source = inputs.source;
    let choices = PlanInputs::choices(source, inputs.view, inputs.importance, inputs.candidates);
    if choices.is_empty() {
        bail!(
            "{}: no tensor of this model can be quantized",
            source.paths()[0].display()
        );
    }
    // What does not depend on the choice: metadata, tensors that keep their type, headers of mixed tensors.
    let alignment = source.alignment;
    let own: u64 = choices
        .iter()
        .map(|(t, _)| t.n_bytes().next_multiple_of(alignment))
        .sum();
    let items: Vec<Item<'_>> = choices
        .into_iter()
        .flat_map(|(tensor, types)| Item::of(tensor, types, granularity, inputs.analysis))
        .collect();
    let headers: u64 = items
        .iter()
        .filter(|i| i.expert == Some(0))
        .map(|i| mixed_header_bytes(i.tensor.dims.ne(2)))
        .sum();
    let fixed = plan_bytes(source, &BTreeMap::new(), inputs.records)? - own + headers;
    let n_weights: u64 = source.tensors.iter().map(TensorInfo::n_elems).sum();
    let chosen: std::collections::BTreeSet<&str> =
        items.iter().map(|i| i.tensor.name.as_str()).collect();
    let kept: u64 = source
        .tensors
        .iter()
        .filter(|t| !chosen.contains(t.name.as_str()))
        .map(TensorInfo::n_bytes)
        .sum();
    let budget_bytes = match budget {
        Budget::Bytes(n) => n,
        // Fixed bytes hold the kept tensors, which the bits per weight count too.
        Budget::BitsPerWeight(bpw) => (bpw * n_weights as f64 / 8.0) as u64 + fixed - kept,
    };

    let costs = CostModel::new(inputs.view, inputs.analysis);
    let options: Vec<Vec<Choice>> = items
        .iter()
        .map(|item| {
            let choice = |ty: &GgmlType| {
                let (cost, _) = item.cost(*ty, inputs.analysis, &costs)?;
                Ok(Choice {
                    bytes: item.bytes(*ty, alignment),
                    cost,
                })
            };
            item.types.iter().map(choice).collect()
        })
        .collect::<Result<_>>()?;
    let solution = match knapsack::solve(&options, budget_bytes.saturating_sub(fixed)) {
        Ok(s) => s,
        Err(KnapsackError::TooSmall { minimum, .. }) => bail!(
            "the budget of {} is too small: with the smallest allowed types the file has {}; allow more, or smaller types{}",
            crate::units::bytes(budget_bytes),
            crate::units::bytes(minimum.saturating_add(fixed)),
            if inputs.analysis.weights.is_empty() {
                " (most types below 3 bits need importance data)"
            } else {
                ""
            }
        ),
        Err(e) => return Err(e.into()),
    };

    let mut tensors: Vec<TensorChoice> = Vec::new();
    let mut data = kept;
    for ((item, option), &pick) in items.iter().zip(&options).zip(&solution.picks) {
        let ty = item.types[pick];
        let rows = if item.expert.is_some() {
            item.tensor.dims.ne(1)
        } else {
            item.tensor.n_rows()
        };
        let bytes = ty.row_bytes(item.tensor.dims.ne(0)).unwrap_or(0) * rows;
        data += bytes;
        let (_, error) = item.cost(ty, inputs.analysis, &costs)?;
        match (item.expert, tensors.last_mut()) {
            (Some(e), Some(last)) if e > 0 => {
                last.experts.push(ty);
                last.bytes += bytes;
                last.cost += option[pick].cost;
                last.error = last.error.max(error);
            }
            (expert, _) => tensors.push(TensorChoice {
                name: item.tensor.name.clone(),
                ty,
                experts: expert.map(|_| ty).into_iter().collect(),
                bytes,
                error,
                cost: option[pick].cost,
            }),
        }
    }
    for t in &mut tensors {
        t.settle();
    }
    Ok(Plan {
        budget_bytes,
        file_bytes: fixed + solution.bytes,
        bpw: data as f64 * 8.0 / n_weights as f64,
        objective: solution.cost,
        bound: solution.bound,
        exact: solution.exact,
        tensors,
        ..Plan::default()
    })
}
