//! Choosing the types.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::candidates::Candidates;
use super::choose::choose;
use super::correlation::Pairs;
use super::cost::CostModel;
use super::experts::{ExpertCosts, Packings, packings};
use super::knapsack::KnapsackError;
use super::recipe::{Plan, TensorChoice};
use crate::analysis::{Analysis, Importance};
use crate::encode::{output_metadata, shard_layouts};
use crate::gguf::{GgmlType, Gguf, GgufLayout, Metadata, TensorInfo};
use crate::mixed::{Mixture, can_mix, guard_metadata};
use crate::model::ModelView;

/// How large the file may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the whole file.
    Bytes(u64),
    /// Bits per weight of the tensor data, metadata not counted, as llama-quantize prints it. Of mixed tensors all that
    /// the file gives them counts: blocks, container and what the carrier leaves empty.
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
    /// A plan none of whose tensors may grow.
    pub within: Option<&'a Plan>,
}

impl<'a> PlanInputs<'a> {
    /// The tensors that get a choice, with their candidate types.
    pub fn choices(
        source: &'a Gguf,
        view: &ModelView,
        importance: &Importance,
        candidates: &Candidates,
    ) -> Vec<(&'a TensorInfo, Vec<GgmlType>)> {
        let each = Self::chosen(source, view, importance);
        each.map(|(t, known)| (t, candidates.of(t, known)))
            .collect()
    }

    /// What the user should know of pins that bind no tensor, or not all that they match.
    pub fn pin_notes(&self) -> Vec<String> {
        let choices: Vec<_> = Self::chosen(self.source, self.view, self.importance).collect();
        let names = self.source.tensors.iter().map(|t| t.name.as_str());
        self.candidates.pin_notes(&choices, names)
    }

    /// The tensors that get a choice, and whether there is importance data for them.
    fn chosen(
        source: &'a Gguf,
        view: &ModelView,
        importance: &Importance,
    ) -> impl Iterator<Item = (&'a TensorInfo, bool)> {
        let tensors = view.tensors.iter().filter(|t| t.quantizable);
        tensors
            .map(|t| &source.tensors[t.index])
            .filter(|tensor| crate::ggml::can_decode(tensor.ty))
            .map(|tensor| {
                let known = importance.of(&tensor.name, 0, tensor.ne(0) as usize);
                (tensor, known.is_some())
            })
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
    file_bytes(source, &output_metadata(source, types, records), types)
}

fn file_bytes(
    source: &Gguf,
    metadata: &Metadata,
    types: &BTreeMap<String, GgmlType>,
) -> Result<u64> {
    Ok(shard_layouts(source, metadata, types, None)?
        .iter()
        .map(GgufLayout::file_size)
        .sum())
}

/// Whether experts of one tensor share a type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// One type a tensor: a file that any llama.cpp runs.
    #[default]
    Tensor,
    /// A type for each expert of a merged tensor.
    Expert,
}

impl Granularity {
    /// Whether the experts of a tensor may differ.
    fn mixes(self, tensor: &TensorInfo) -> bool {
        self == Granularity::Expert && can_mix(tensor)
    }
}

/// A tensor with the ways to store it.
struct Item<'a> {
    tensor: &'a TensorInfo,
    types: Vec<GgmlType>,
    packings: Packings,
}

/// What each matrix of a tensor costs in each type.
fn expert_costs(
    tensor: &TensorInfo,
    types: &[GgmlType],
    analysis: &Analysis,
    costs: &CostModel,
) -> Result<ExpertCosts> {
    let name = &tensor.name;
    let traffic = analysis.traffic(name);
    let shares = analysis.errors.shares(name, &traffic).unwrap_or_default();
    let errors = analysis.errors.tensor(name);
    // A file may say something else than what was measured.
    let n_mat = tensor.n_rows() / tensor.ne(1).max(1);
    ensure!(
        errors.is_none() || shares.len() as u64 == n_mat,
        "tensor {name}: errors of {} matrices were measured and it has {n_mat}; analyze the model again",
        shares.len()
    );
    let mut out = ExpertCosts {
        costs: vec![Vec::with_capacity(types.len()); shares.len()],
        amplitudes: vec![Vec::with_capacity(types.len()); shares.len()],
    };
    for ty in types {
        let missing = || format!("tensor {name}: its error in {ty} was not measured");
        let of_matrix = errors
            .and_then(|e| e.by_type.get(ty))
            .with_context(missing)?;
        for (e, share) in shares.iter().enumerate() {
            let error = *of_matrix.get(e).with_context(missing)?;
            let whole = costs.burden(costs.cost(name, error));
            out.costs[e].push(share * whole);
            out.amplitudes[e].push((error * whole).sqrt());
        }
    }
    Ok(out)
}

/// What experts of the tensor's layer do to each other's errors, if it holds these and the analysis knows.
fn pairs_of(tensor: &TensorInfo, analysis: &Analysis) -> Option<Pairs> {
    if !can_mix(tensor) {
        return None;
    }
    let layer = crate::model::layer_of(&tensor.name)?;
    let measured = analysis.coactivation.get(&layer)?;
    if measured.n_expert as u64 != tensor.ne(2) {
        return None;
    }
    Pairs::new(measured)
}

/// Expected divergence of a plan by an analysis, which may be of another mix of domains than it was made for.
pub fn expected_divergence(plan: &Plan, analysis: &Analysis, costs: &CostModel) -> f64 {
    let of = |t: &TensorChoice| -> Option<f64> {
        let errors = analysis.errors.tensor(&t.name)?;
        let shares = analysis
            .errors
            .shares(&t.name, &analysis.traffic(&t.name))?;
        let each = shares.iter().enumerate().map(|(e, share)| {
            let ty = t.experts.get(e).unwrap_or(&t.ty);
            let error = errors.by_type.get(ty)?.get(e)?;
            Some(share * costs.burden(costs.cost(&t.name, *error)))
        });
        each.sum()
    };
    costs.joint(plan.tensors.iter().filter_map(of).sum())
}

/// Bytes that the header of a file grows by when all of `tensors` are mixed.
fn guard_bytes(source: &Gguf, tensors: &[&TensorInfo], records: &[(&str, String)]) -> Result<u64> {
    if tensors.is_empty() {
        return Ok(0);
    }
    let each = |t: &&TensorInfo| (t.name.clone(), vec![GgmlType::Q8_0; t.dims.ne(2) as usize]);
    let fits = tensors
        .iter()
        .filter(|t| GgmlType::Q8_0.row_bytes(t.dims.ne(0)).is_some());
    let mixture = Mixture::new(source, &fits.map(each).collect())?;
    let types = BTreeMap::new();
    let plain = output_metadata(source, &types, records);
    let mut guarded = plain.clone();
    guard_metadata(&mut guarded, &mixture);
    let without = file_bytes(source, &plain, &types)?;
    Ok(file_bytes(source, &guarded, &types)?.saturating_sub(without))
}

/// The file that a plan gives, not split.
fn layout_of(source: &Gguf, plan: &Plan, records: &[(&str, String)]) -> Result<GgufLayout> {
    let mixture = Mixture::new(source, &plan.expert_types())?;
    let types = mixture.file_types(plan.types());
    let mut metadata = output_metadata(source, &types, records);
    guard_metadata(&mut metadata, &mixture);
    let mut layouts = shard_layouts(source, &metadata, &types, None)?;
    layouts.pop().context("a file without a layout")
}

/// Makes the plan with the smallest expected divergence within the budget.
///
/// The choice of a packing for every tensor is a multiple-choice knapsack over burdens ([`CostModel::burden`]), solved exactly or
/// with a stated bound. Where experts have types of their own, the packings of a tensor are the best mixtures for
/// each size that a file can give it (its carriers), found by a knapsack within the tensor and exchanges that take in
/// what experts do to each other's errors. The bound holds for all mixtures, those that were not found among them, that
/// keep to `inputs.within`.
///
/// The budget is kept as if all tensors that can be mixed were; the plan states the bytes of the file that it gives.
///
/// # Errors
/// The budget is below the smallest possible file, or the data cannot be used.
pub fn make_plan(
    inputs: &PlanInputs<'_>,
    budget: Budget,
    granularity: Granularity,
) -> Result<Plan> {
    let (source, analysis) = (inputs.source, inputs.analysis);
    let choices = PlanInputs::choices(source, inputs.view, inputs.importance, inputs.candidates);
    if choices.is_empty() {
        bail!(
            "{}: no tensor of this model can be quantized",
            source.paths()[0].display()
        );
    }
    // What does not depend on the choice: metadata, and tensors that keep their type.
    let alignment = source.alignment;
    let own: u64 = choices
        .iter()
        .map(|(t, _)| t.n_bytes().next_multiple_of(alignment))
        .sum();
    let mixable: Vec<&TensorInfo> = choices
        .iter()
        .map(|(t, _)| *t)
        .filter(|t| granularity.mixes(t))
        .collect();
    let guard = guard_bytes(source, &mixable, inputs.records)?;
    let fixed = plan_bytes(source, &BTreeMap::new(), inputs.records)? - own + guard;
    let n_weights: u64 = source.tensors.iter().map(TensorInfo::n_elems).sum();
    let chosen: std::collections::BTreeSet<&str> =
        choices.iter().map(|(t, _)| t.name.as_str()).collect();
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

    let costs = CostModel::new(inputs.view, analysis);
    let items: Vec<Item<'_>> = choices
        .into_par_iter()
        .map(|(tensor, types)| {
            let each = expert_costs(tensor, &types, analysis, &costs)?;
            let pairs = pairs_of(tensor, analysis);
            let mix = granularity.mixes(tensor);
            let pairs = pairs.as_ref();
            let mut packings = packings(&tensor.dims, &types, &each, pairs, alignment, mix)?;
            if let Some(other) = inputs
                .within
                .and_then(|plan| plan.tensors.iter().find(|t| t.name == tensor.name))
            {
                // The first that holds the other's experts is as large as theirs.
                packings.limit(other.bytes);
            }
            Ok(Item {
                tensor,
                types,
                packings,
            })
        })
        .collect::<Result<_>>()?;
    let room = budget_bytes.saturating_sub(fixed);
    let all: Vec<&Packings> = items.iter().map(|i| &i.packings).collect();
    let chosen = match choose(&all, room) {
        Ok(c) => c,
        Err(KnapsackError::TooSmall { minimum, .. }) => bail!(
            "the budget of {} is too small: with the smallest allowed types the file has {}; allow more, or smaller types{}",
            crate::units::bytes(budget_bytes),
            crate::units::bytes(minimum.saturating_add(fixed)),
            if analysis.weights.is_empty() {
                " (most types below 3 bits need importance data)"
            } else {
                ""
            }
        ),
        Err(e) => return Err(e.into()),
    };
    let solution = &chosen.solution;
    let divergence = costs.joint(solution.cost);
    let mut tensors: Vec<TensorChoice> = Vec::new();
    for (item, &pick) in items.iter().zip(&solution.picks) {
        let packing = &item.packings.ways[pick];
        let types: Vec<GgmlType> = packing.picks.iter().map(|p| item.types[*p]).collect();
        let ty = *types.first().context("a tensor without matrices")?;
        let rows = item.tensor.n_rows() / types.len() as u64;
        let row = |ty: &GgmlType| ty.row_bytes(item.tensor.ne(0)).unwrap_or(0) * rows;
        let bytes = types.iter().map(row).sum();
        let errors = analysis.errors.tensor(&item.tensor.name);
        let error = types
            .iter()
            .enumerate()
            .filter_map(|(e, ty)| errors?.by_type.get(ty)?.get(e).copied())
            .fold(0.0, f64::max);
        let mut choice = TensorChoice {
            name: item.tensor.name.clone(),
            ty,
            experts: types,
            bytes,
            error,
            // Its part of what all do together.
            cost: divergence * packing.cost / solution.cost.max(f64::MIN_POSITIVE),
        };
        choice.settle();
        tensors.push(choice);
    }
    let mut plan = Plan {
        budget_bytes,
        objective: divergence,
        bound: costs.joint(chosen.bound),
        exact: chosen.exact,
        tensors,
        ..Plan::default()
    };
    let layout = layout_of(source, &plan, inputs.records)?;
    let data: u64 = layout.tensors().iter().map(|t| t.n_bytes).sum();
    plan.file_bytes = layout.file_size();
    plan.bpw = data as f64 * 8.0 / n_weights as f64;
    Ok(plan)
}
