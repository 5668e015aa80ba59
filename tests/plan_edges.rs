//! Plans at the edges: tensors that look like experts, files that contradict themselves, pins that do nothing.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use common::{lab_model, moqa, moqa_ok, s, science_imatrix};
use moqa::analysis::{
    self, Analysis, Coactivation, Domain, Importance, RouterStats, TensorErrors, Unreached,
};
use moqa::encode::{EncodeOptions, Refit, encode_mixed, output_metadata};
use moqa::gguf::{GgmlType, Gguf};
use moqa::mixed::{Mixture, guard_metadata};
use moqa::model::ModelView;
use moqa::plan::{Budget, Candidates, Granularity, Plan, PlanInputs, make_plan};
use moqa::progress::Progress;

/// A small model with latent attention, whose heads are matrices of one tensor as experts are.
fn latent_attention() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/deepseek_v3/reference-bf16.gguf")
}

/// Plans for it without measuring effects; returns what was told.
fn plan_latent(to: &Path, more: &[&str]) -> String {
    let model = latent_attention();
    let base = ["plan", s(&model), "-o", s(to), "--sensitivity", "0"];
    let chunks = ["--chunks", "2", "--threads", "1"];
    let out = moqa(&[&base[..], &chunks, more].concat());
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{told}");
    told
}

/// The program says no, with these words.
fn refused(args: &[&str], words: &str) {
    let out = moqa(args);
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{told}");
    assert!(told.contains(words), "{told}");
}

/// What a plan is made from, with made-up errors.
struct Bench {
    source: Gguf,
    view: ModelView,
    importance: Importance,
    candidates: Candidates,
    analysis: Analysis,
}

impl Bench {
    /// Errors that grow with the matrix's number.
    fn new(path: &Path, types: &[GgmlType]) -> Self {
        let source = Gguf::open(path).unwrap();
        let view = ModelView::new(&source).unwrap();
        let importance = Importance::new(&Analysis::default(), Unreached::default());
        let candidates = Candidates::new(types.to_vec(), None, None, Vec::new());
        let mut analysis = Analysis::default();
        for (tensor, types) in PlanInputs::choices(&source, &view, &importance, &candidates) {
            let n_mat = tensor.ne(2) as i32;
            let errors = |ty: &GgmlType| {
                let error = if *ty == tensor.ty {
                    0.0
                } else {
                    0.01 / ty.bpw()
                };
                (*ty, (0..n_mat).map(|e| error * 1.7f64.powi(e)).collect())
            };
            let errors = TensorErrors {
                energy: vec![1.0; n_mat as usize],
                by_type: types.iter().map(errors).collect(),
            };
            analysis.errors.insert(&tensor.name, errors);
        }
        for layer in 0..view.n_layer {
            let mut together = Coactivation::new(view.n_expert);
            together.outputs = vec![0.1; view.n_expert * view.n_expert];
            analysis.coactivation.insert(layer, together);
        }
        Self {
            source,
            view,
            importance,
            candidates,
            analysis,
        }
    }

    fn plan(&self, analysis: &Analysis, bpw: f64) -> anyhow::Result<Plan> {
        let inputs = PlanInputs {
            source: &self.source,
            view: &self.view,
            analysis,
            importance: &self.importance,
            candidates: &self.candidates,
            records: &[],
            within: None,
        };
        make_plan(&inputs, Budget::BitsPerWeight(bpw), Granularity::Expert)
    }

    fn write(&self, plan: &Plan, to: &Path) {
        let mixture = Mixture::new(&self.source, &plan.expert_types()).unwrap();
        let types = mixture.file_types(plan.types());
        let mut metadata = output_metadata(&self.source, &types, &[]);
        guard_metadata(&mut metadata, &mixture);
        let options = EncodeOptions {
            n_threads: 1,
            split_max_bytes: None,
        };
        encode_mixed(
            &self.source,
            &metadata,
            &types,
            &mixture,
            &self.importance,
            &Refit::default(),
            to,
            &options,
            &Progress::quiet(),
        )
        .unwrap();
    }
}

/// Of a model whose heads could be taken for experts, at sizes at which some experts are mixed, all, or none.
#[test]
fn only_experts_are_mixed_and_plans_state_the_size_of_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.gguf");
    let types = [GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q8_0];
    let bench = Bench::new(&latent_attention(), &types);
    let mut numbers = BTreeSet::new();
    for bpw in [5.0, 5.2, 5.6, 6.5, 8.0, 12.0] {
        let plan = bench.plan(&bench.analysis, bpw).unwrap();
        let mixed = plan.expert_types();
        assert!(mixed.keys().all(|n| n.ends_with("_exps.weight")));
        numbers.insert(mixed.len());
        bench.write(&plan, &file);
        assert_eq!(plan.file_bytes, std::fs::metadata(&file).unwrap().len());
        assert!(plan.file_bytes <= plan.budget_bytes);
        let shown = moqa_ok(&["inspect", s(&file), "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let shown = shown["bits_per_weight"].as_f64().unwrap();
        assert!((plan.bpw - shown).abs() < 1e-9, "{} {shown}", plan.bpw);
    }
    assert!(numbers.iter().any(|n| (1..3).contains(n)), "{numbers:?}");
}

#[test]
fn heads_are_not_mixed_where_a_plan_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, file) = (dir.path().join("plan.toml"), dir.path().join("small.gguf"));
    let types = r#"["q4_0", "q4_0", "q8_0", "q8_0"]"#;
    let text = format!("version = 1\n[tensors]\n\"blk.0.attn_v_b.weight\" = {types}\n");
    std::fs::write(&plan, text).unwrap();
    let model = latent_attention();
    let args = ["quantize", s(&model), "--plan", s(&plan), "-o", s(&file)];
    refused(
        &[&args[..], &["--no-analysis"]].concat(),
        "tensor blk.0.attn_v_b.weight of shape [32, 16, 4]: only merged experts",
    );
    assert!(!file.exists());
}

#[test]
fn errors_of_another_number_of_matrices_are_refused() {
    let bench = Bench::new(&lab_model(), &[GgmlType::Q4_0]);
    let sound = &bench.analysis;
    assert!(bench.plan(sound, 9.0).is_ok());
    let name = "blk.1.ffn_up_exps.weight";
    for n in [0, 1, 15, 17] {
        let mut wrong = sound.clone();
        let errors = sound.errors.tensor(name).unwrap();
        let by_type = errors.by_type.keys().map(|ty| (*ty, vec![0.5; n]));
        let errors = TensorErrors {
            energy: vec![1.0; n],
            by_type: by_type.collect(),
        };
        wrong.errors.insert(name, errors);
        let message = format!("{:#}", bench.plan(&wrong, 9.0).unwrap_err());
        let words = format!("tensor {name}: errors of {n} matrices");
        assert!(message.contains(&words), "{message}");
        let message = analysis::imatrix::fit_to_model(&mut wrong, &bench.source);
        let message = message.unwrap_err().to_string();
        assert!(message.contains(&words), "{message}");
    }
    let mut again = sound.clone();
    assert!(analysis::imatrix::fit_to_model(&mut again, &bench.source).is_ok());
    assert_eq!(again, *sound);

    // A file that says so.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.moqa");
    let mut file = analysis::load(science_imatrix()).unwrap();
    let errors = TensorErrors {
        energy: vec![1.0; 17],
        by_type: BTreeMap::new(),
    };
    file.errors.insert(name, errors);
    analysis::save(&path, &file).unwrap();
    let model = lab_model();
    let args = ["plan", s(&model), "--analysis", s(&path), "--dry-run"];
    refused(
        &[&args[..], &["--bpw", "4"]].concat(),
        "errors of 17 matrices, but the model's tensor of shape [256, 256, 16] has 16",
    );
}

#[test]
fn routers_of_domains_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.moqa");
    let save = |of_domain: RouterStats| {
        let domain = Domain {
            name: "code".into(),
            routers: BTreeMap::from([(3, of_domain)]),
            ..Domain::default()
        };
        let analysis = Analysis {
            routers: BTreeMap::from([(3, RouterStats::new(4, 2))]),
            domains: vec![domain],
            ..Analysis::default()
        };
        analysis::save(&path, &analysis)
    };
    let with = |change: fn(&mut RouterStats)| {
        let mut router = RouterStats::new(4, 2);
        change(&mut router);
        let message = format!("{:#}", save(router).unwrap_err());
        let place = "router of layer 3 in domain 'code'";
        assert!(message.contains(place), "{message}");
        message
    };
    assert!(save(RouterStats::new(4, 2)).is_ok());
    assert!(with(|r| r.counts[1] = -1.0).contains("negative"));
    assert!(with(|r| r.tokens = f64::NAN).contains("not finite"));
    assert!(with(|r| r.gate_mass_sq[0] = -0.5).contains("negative"));
    assert!(with(|r| r.n_used = 5).contains("5 experts used"));
    assert!(with(|r| *r = RouterStats::new(3, 2)).contains("3 experts"));
}

#[test]
fn pins_that_do_nothing_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.toml");
    let budget = ["--types", "q4_0,q8_0", "--bpw", "9"];
    let told = |pins: &[&str]| {
        let pins = pins.iter().flat_map(|p| ["--pin", *p]);
        plan_latent(&plan, &budget.into_iter().chain(pins).collect::<Vec<_>>())
    };
    let silent = told(&["attn_output=q8_0", "_exps=q4_0"]);
    assert!(!silent.contains("--pin"), "{silent}");
    for (pins, words) in [
        (
            &["nosuchtensor=q8_0"][..],
            "note: --pin nosuchtensor=q8_0 matches no tensor\n",
        ),
        (
            &["attn_norm=q8_0"],
            "note: --pin attn_norm=q8_0 matches no tensor that can be quantized\n",
        ),
        (
            &["blk.0.attn_v_b=q6_k"],
            "note: --pin blk.0.attn_v_b=q6_K: rows of 32 values do not fill q6_K's blocks of 256; \
             tensor blk.0.attn_v_b.weight gets another type\n",
        ),
        (
            &["attn_v_b=q6_k"],
            "tensor blk.0.attn_v_b.weight and 1 more get other types\n",
        ),
        (&["output=q8_1"], "ggml cannot quantize to q8_1"),
        (
            &["_exps=q4_0", "ffn_up_exps=q8_0"],
            "note: --pin ffn_up_exps=q8_0: all that it matches is bound by others before it\n",
        ),
    ] {
        let told = told(pins);
        assert!(told.contains(words), "{told}");
    }
}
