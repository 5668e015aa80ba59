//! What a report can hold. Every section may be absent; a value that was not measured is `None` or NaN, which JSON
//! writes as `null`.

use serde::{Deserialize, Deserializer, Serialize};

/// One value for each layer and expert: `grid[layer][expert]`.
///
/// A row of a single value stands for all experts of its layer, as does a type that one tensor shares among them.
pub type Grid = Vec<Vec<f64>>;

/// Everything that the report shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Heading of the page.
    pub title: String,
    /// The model the report is about.
    pub model: ModelInfo,
    /// Program and version that measured, such as `moqa 0.1.0`.
    pub generated_by: String,
    /// Size against quality, for presets and for moqa.
    pub curve: Option<Vec<CurvePoint>>,
    /// How the curve's figures were measured, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curve_notes: Vec<String>,
    /// What each expert does and gets.
    pub experts: Option<ExpertGrid>,
    /// How the domains of the text differ in the experts they use.
    pub domains: Option<DomainShift>,
    /// Experts that are chosen together, one entry for each layer.
    pub coactivation: Option<Vec<Coactivation>>,
    /// What leaving out a stage costs.
    pub ablation: Option<Vec<AblationBar>>,
    /// The plan, tensor by tensor.
    pub tensors: Option<Vec<TensorRow>>,
}

/// Facts about the model. Zero and the empty string mean unknown and are not shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or the file's name.
    pub name: String,
    /// Layers.
    pub n_layer: usize,
    /// Experts in a layer.
    pub n_expert: usize,
    /// Experts that a token is sent to.
    pub n_expert_used: usize,
    /// Weights in all tensors.
    pub parameters: u64,
    /// Bytes of the source file.
    pub bytes: u64,
}

/// Who chose the types of a quantized file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PointKind {
    /// A preset of llama-quantize.
    #[default]
    #[serde(rename = "preset")]
    Preset,
    /// moqa, one type for each tensor: runs on any llama.cpp.
    #[serde(rename = "moqa")]
    Moqa,
    /// moqa, a type for each expert.
    #[serde(rename = "moqa per expert")]
    MoqaPerExpert,
    /// The model as it was.
    #[serde(rename = "original")]
    Original,
}

impl PointKind {
    /// The name in files and in the legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preset => "preset",
            Self::Moqa => "moqa",
            Self::MoqaPerExpert => "moqa per expert",
            Self::Original => "original",
        }
    }
}

/// A quantized file and its distance from the original.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CurvePoint {
    /// Name of the point: the preset's, or the plan's.
    pub label: String,
    /// Who chose the types.
    pub kind: PointKind,
    /// Label of the preset whose size was the budget; moqa's points are compared with that preset.
    pub budget: Option<String>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits per weight.
    #[serde(deserialize_with = "number")]
    pub bpw: f64,
    /// Mean KL divergence of the next-token distributions from the original's, nats per token.
    #[serde(deserialize_with = "number")]
    pub kld: f64,
    /// Standard error of `kld`, nats per token.
    #[serde(deserialize_with = "number")]
    pub kld_error: f64,
    /// Perplexity.
    #[serde(deserialize_with = "number")]
    pub ppl: f64,
    /// Perplexity divided by the original's.
    #[serde(deserialize_with = "number")]
    pub ppl_ratio: f64,
    /// Share of tokens, 0 to 1, whose likeliest next token is the original's.
    #[serde(deserialize_with = "number")]
    pub same_top: f64,
    /// Share of right answers in a task, 0 to 1.
    pub accuracy: Option<f64>,
    /// Standard error of `accuracy`.
    pub accuracy_error: Option<f64>,
    /// 95 % confidence interval of `accuracy`.
    #[serde(deserialize_with = "optional_pair")]
    pub accuracy_interval: Option<[f64; 2]>,
    /// Tasks that `accuracy` is of.
    pub tasks: Option<usize>,
    /// `accuracy` against that of others on the same tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accuracy_tests: Vec<AccuracyTest>,
    /// Seconds that quantizing took, analysis not included.
    pub quantize_seconds: Option<f64>,
    /// Tokens of text evaluated in a second.
    pub tokens_per_second: Option<f64>,
}

/// Two files' right answers to the same tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccuracyTest {
    /// Label of the other file.
    pub against: String,
    /// This file's accuracy minus the other's, -1 to 1.
    #[serde(deserialize_with = "number")]
    pub difference: f64,
    /// 95 % confidence interval of `difference`.
    #[serde(deserialize_with = "pair")]
    pub interval: [f64; 2],
    /// Two-sided p-value of McNemar's exact test.
    #[serde(deserialize_with = "number")]
    pub p_value: f64,
    /// Share of tasks, 0 to 1, on which both take the same choice.
    #[serde(deserialize_with = "number")]
    pub same_choice: f64,
}

impl Default for CurvePoint {
    fn default() -> Self {
        Self {
            label: String::new(),
            kind: PointKind::default(),
            budget: None,
            bytes: 0,
            bpw: f64::NAN,
            kld: f64::NAN,
            kld_error: f64::NAN,
            ppl: f64::NAN,
            ppl_ratio: f64::NAN,
            same_top: f64::NAN,
            accuracy: None,
            accuracy_error: None,
            accuracy_interval: None,
            tasks: None,
            accuracy_tests: Vec::new(),
            quantize_seconds: None,
            tokens_per_second: None,
        }
    }
}

/// Values of experts by layer. The grids' rows are in the order of `layers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpertGrid {
    /// Layer numbers (`blk.N`): those with experts.
    pub layers: Vec<usize>,
    /// Experts in a layer.
    pub n_expert: usize,
    /// Share of the tokens, 0 to 1, that each expert got; a layer's row sums to the experts used by a token.
    #[serde(deserialize_with = "grid")]
    pub activation: Grid,
    /// Share of the layer's gate weight, 0 to 1, that each expert got; a layer's row sums to 1.
    #[serde(deserialize_with = "optional_grid")]
    pub gate_mass: Option<Grid>,
    /// Rise of the model's KL divergence when the expert is quantized to the reference type, nats per token.
    #[serde(deserialize_with = "optional_grid")]
    pub sensitivity: Option<Grid>,
    /// The reference type, such as `q3_K`; empty when unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sensitivity_type: String,
    /// What of the expert is quantized to it, such as `expert down`; empty when unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sensitivity_roles: Vec<String>,
    /// Bits per weight that the plan gives the expert's tensors.
    #[serde(deserialize_with = "optional_grid")]
    pub bits: Option<Grid>,
    /// The types that the plan gives, such as `q3_K` or `q3_K + q4_K`; rows as in [`Grid`].
    pub types: Option<Vec<Vec<String>>>,
}

/// How domains differ in the experts that they use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DomainShift {
    /// Names of the domains, the order of the matrix.
    pub names: Vec<String>,
    /// Jensen-Shannon divergence of the distributions over experts, mean over layers, in bits: 0 is the same
    /// use, 1 is no expert in common.
    #[serde(deserialize_with = "grid")]
    pub divergence: Grid,
    /// For each domain its name and the share of its tokens that each expert got, as
    /// [`ExpertGrid::activation`].
    #[serde(deserialize_with = "named_grids")]
    pub per_domain: Vec<(String, Grid)>,
}

/// What the matrix of a [`Coactivation`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PairMeasure {
    /// Tokens that were sent to both experts.
    Counts,
    /// That number divided by what independent choices would give: 1 is chance.
    #[default]
    Lift,
}

/// Experts of a layer that tokens choose together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Coactivation {
    /// Layer number.
    pub layer: usize,
    /// Experts in the layer.
    pub n_expert: usize,
    /// What `matrix` holds.
    pub measure: PairMeasure,
    /// Symmetric, `n_expert` rows of `n_expert` values; the diagonal is not used.
    #[serde(deserialize_with = "grid")]
    pub matrix: Grid,
    /// Share of the tokens, 0 to 1, that each expert got.
    #[serde(deserialize_with = "numbers")]
    pub frequency: Vec<f64>,
    /// Tokens routed; turns counts into lifts. Zero when unknown.
    pub tokens: u64,
}

/// The divergence with one stage left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AblationBar {
    /// The stage left out.
    pub stage: String,
    /// The byte budget, named as in the curve.
    pub budget: String,
    /// KL divergence without the stage, nats per token.
    #[serde(deserialize_with = "number")]
    pub kld: f64,
    /// Its standard error.
    #[serde(deserialize_with = "number")]
    pub kld_error: f64,
    /// KL divergence with every stage at the same budget.
    #[serde(deserialize_with = "number")]
    pub full_kld: f64,
    /// 95 % confidence interval of `kld / full_kld - 1`, both measured on the same text.
    #[serde(
        deserialize_with = "optional_pair",
        skip_serializing_if = "Option::is_none"
    )]
    pub interval: Option<[f64; 2]>,
}

/// The plan's choice for a tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TensorRow {
    /// Tensor name.
    pub name: String,
    /// What the tensor is, such as `expert down`.
    pub role: String,
    /// ggml type.
    pub ty: String,
    /// Bytes in that type.
    pub bytes: u64,
    /// Where experts have types of their own: the types and their bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(String, u64)>,
    /// Relative squared error of the tensor's outputs.
    #[serde(deserialize_with = "number")]
    pub error: f64,
    /// Expected divergence of the model's output, nats per token.
    #[serde(deserialize_with = "number")]
    pub cost: f64,
}

/// JSON has no NaN and writes `null` in its place.
#[derive(Deserialize)]
#[serde(transparent)]
struct Number(Option<f64>);

impl From<Number> for f64 {
    fn from(n: Number) -> Self {
        n.0.unwrap_or(Self::NAN)
    }
}

fn values(row: Vec<Number>) -> Vec<f64> {
    row.into_iter().map(f64::from).collect()
}

fn rows(grid: Vec<Vec<Number>>) -> Grid {
    grid.into_iter().map(values).collect()
}

fn number<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Number::deserialize(d).map(f64::from)
}

fn pair<'de, D: Deserializer<'de>>(d: D) -> Result<[f64; 2], D::Error> {
    <[Number; 2]>::deserialize(d).map(|p| p.map(f64::from))
}

fn optional_pair<'de, D: Deserializer<'de>>(d: D) -> Result<Option<[f64; 2]>, D::Error> {
    Option::<[Number; 2]>::deserialize(d).map(|p| p.map(|p| p.map(f64::from)))
}

fn numbers<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f64>, D::Error> {
    Vec::deserialize(d).map(values)
}

fn grid<'de, D: Deserializer<'de>>(d: D) -> Result<Grid, D::Error> {
    Vec::deserialize(d).map(rows)
}

fn optional_grid<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Grid>, D::Error> {
    Option::deserialize(d).map(|g| g.map(rows))
}

fn named_grids<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(String, Grid)>, D::Error> {
    let named: Vec<(String, Vec<Vec<Number>>)> = Vec::deserialize(d)?;
    Ok(named.into_iter().map(|(n, g)| (n, rows(g))).collect())
}
