//! Planning a large model: 48 layers of 128 experts with 20 types to choose from, statistics made up.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use moqa::analysis::{
    Analysis, Coactivation, Domain, Importance, JointProbe, Probe, RouterStats, Sample,
    TensorErrors, Unreached, WeightStats,
};
use moqa::gguf::{DEFAULT_VERSION, GgmlType, Gguf, GgufLayout, Shape, TensorSpec};
use moqa::model::ModelView;
use moqa::plan::{
    Budget, Candidates, Fares, Granularity, Measured, Plan, PlanInputs, Scenario, make_plan,
    plan_for,
};

const N_LAYER: usize = 48;
const N_EXPERT: usize = 128;
const N_EMBD: u64 = 2048;
const N_FF: u64 = 768;
const DOMAINS: usize = 4;

/// A model whose tensor data is a hole in the file.
fn model(path: &Path) -> Gguf {
    let tensor = |name: String, dims: &[u64], ty| TensorSpec {
        name,
        dims: Shape::new(dims).expect("valid"),
        ty,
    };
    let shipped = Gguf::open(common::lab_model()).unwrap();
    let mut specs = vec![
        tensor("token_embd.weight".into(), &[N_EMBD, 4096], GgmlType::BF16),
        tensor("output_norm.weight".into(), &[N_EMBD], GgmlType::F32),
    ];
    for il in 0..N_LAYER {
        let mut t = |what: &str, dims: &[u64], ty| {
            specs.push(tensor(format!("blk.{il}.{what}.weight"), dims, ty));
        };
        let experts = N_EXPERT as u64;
        for what in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            t(what, &[N_EMBD, N_EMBD], GgmlType::BF16);
        }
        t("ffn_gate_inp", &[N_EMBD, experts], GgmlType::F32);
        t("ffn_gate_exps", &[N_EMBD, N_FF, experts], GgmlType::BF16);
        t("ffn_up_exps", &[N_EMBD, N_FF, experts], GgmlType::BF16);
        t("ffn_down_exps", &[N_FF, N_EMBD, experts], GgmlType::BF16);
    }
    let mut metadata = shipped.metadata.clone();
    metadata.set("qwen3moe.block_count", N_LAYER as u32);
    metadata.set("qwen3moe.expert_count", N_EXPERT as u32);
    metadata.set("qwen3moe.expert_used_count", 8u32);
    let layout = GgufLayout::new(&metadata, specs, DEFAULT_VERSION).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(layout.header()).unwrap();
    file.set_len(layout.file_size()).unwrap();
    Gguf::open(path).unwrap()
}

struct Random(u64);

impl Random {
    /// Between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn router(random: &mut Random) -> RouterStats {
    let mut r = RouterStats::new(N_EXPERT, 8);
    r.counts = (0..N_EXPERT)
        .map(|_| 2000.0 * random.next().powi(3))
        .collect();
    r.tokens = r.counts.iter().sum::<f64>() / 8.0;
    r.gate_mass = r.counts.iter().map(|c| c * 0.125).collect();
    r.gate_mass_sq = r.counts.iter().map(|c| c * 0.02).collect();
    r
}

/// What a pass over 80 thousand tokens could have found.
fn analysis(source: &Gguf, view: &ModelView) -> Analysis {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut a = Analysis::default();
    for layer in 0..N_LAYER {
        a.routers.insert(layer, router(&mut random));
        let mut c = Coactivation::new(N_EXPERT);
        c.counts = vec![10.0; N_EXPERT * N_EXPERT];
        c.outputs = vec![0.0; N_EXPERT * N_EXPERT];
        for i in 0..N_EXPERT {
            c.outputs[i * N_EXPERT + i] = 1.0 + random.next();
            for j in 0..i {
                let product = 0.001 * (random.next() - 0.3);
                c.outputs[i * N_EXPERT + j] = product;
                c.outputs[j * N_EXPERT + i] = product;
            }
        }
        a.coactivation.insert(layer, c);
    }
    for d in 0..DOMAINS {
        let routers = (0..N_LAYER).map(|l| (l, router(&mut random))).collect();
        a.domains.push(Domain {
            name: format!("domain {d}"),
            routers,
            ..Domain::default()
        });
    }
    let candidates = Candidates::default();
    for t in view.tensors.iter().filter(|t| t.quantizable) {
        let tensor = &source.tensors[t.index];
        let (n_in, n_mat) = (tensor.ne(0) as usize, tensor.ne(2) as usize);
        a.weights.insert(
            t.name.clone(),
            WeightStats {
                n_in,
                counts: (0..n_mat).map(|_| 1.0 + 2000.0 * random.next()).collect(),
                sum_sq: vec![1.0; n_in * n_mat],
                sum: Vec::new(),
            },
        );
        let types = candidates.of(tensor, true);
        assert_eq!(types.len(), 20);
        let mut by_type = BTreeMap::new();
        let hard: Vec<f64> = (0..n_mat).map(|_| 0.5 + random.next()).collect();
        for ty in types {
            let each = |h: &f64| {
                if ty == tensor.ty {
                    0.0
                } else {
                    h * (-1.2 * ty.bpw()).exp()
                }
            };
            by_type.insert(ty, hard.iter().map(each).collect());
        }
        let energy = (0..n_mat).map(|_| 0.2 + random.next()).collect();
        a.errors.insert(&t.name, TensorErrors { energy, by_type });
        let scale = 0.01 * (1.0 + random.next());
        for (ty, part) in [(GgmlType::Q3_K, 0.03), (GgmlType::IQ2_XS, 0.1)] {
            a.probes.push(Probe {
                tensor: t.name.clone(),
                ty,
                kld: scale * part,
                by_domain: (0..DOMAINS)
                    .map(|_| scale * part * (0.5 + random.next()))
                    .collect(),
            });
        }
    }
    let experts: Vec<String> = a
        .probes
        .iter()
        .filter(|p| p.ty == GgmlType::Q3_K && p.tensor.contains("_exps"))
        .map(|p| p.tensor.clone())
        .collect();
    a.joint.push(JointProbe {
        tensors: experts,
        ty: GgmlType::Q3_K,
        kld: 0.03,
    });
    a
}

/// User and system time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // Linux counts in hundredths for every program.
    ticks / 100.0
}

/// The most memory this process ever had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// Calls `f` with what a plan of the large model is made from.
fn with_inputs(f: impl FnOnce(&PlanInputs<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&dir.path().join("large.gguf"));
    let view = ModelView::new(&source).unwrap();
    let analysis = analysis(&source, &view);
    let candidates = Candidates::default();
    let importance = Importance::new(&analysis, Unreached::default());
    f(&PlanInputs {
        source: &source,
        view: &view,
        analysis: &analysis,
        importance: &importance,
        candidates: &candidates,
        records: &[],
        within: None,
    });
}

fn plans_within_its_time(scenario: &Scenario, granularity: Granularity) {
    with_inputs(|inputs| {
        let before = cpu_seconds();
        let plan = plan_for(
            inputs,
            Budget::BitsPerWeight(3.4),
            scenario,
            granularity,
            None,
        )
        .unwrap();
        // Processor time, because others may use this machine.
        let took = cpu_seconds() - before;
        println!(
            "{scenario:?}, {granularity:?}: {took:.2} s of processor time, {:.0} MiB, gap {:.3} %",
            peak_memory() as f64 / f64::from(1 << 20),
            plan.gap() * 100.0
        );
        assert!(plan.file_bytes <= plan.budget_bytes);
        assert!(plan.bpw > 3.3, "{}", plan.bpw);
        assert!(plan.gap() < 0.02, "{}", plan.gap());
        let mixed = plan
            .tensors
            .iter()
            .filter(|t| !t.experts.is_empty())
            .count();
        assert_eq!(mixed > 100, granularity == Granularity::Expert, "{mixed}");
        assert!(took < 20.0, "{took} s");
        assert!(peak_memory() < 2 << 30, "{} bytes", peak_memory());
    });
}

/// Types of tensors, with room for more than another plan, of whose tensors none may grow.
#[test]
fn no_tensor_grows_beyond_the_plan_that_it_is_made_within() {
    with_inputs(|inputs| {
        let plan = |within, bpw| {
            let inputs = PlanInputs { within, ..*inputs };
            make_plan(&inputs, Budget::BitsPerWeight(bpw), Granularity::Tensor).unwrap()
        };
        let small = plan(None, 3.0);
        let large = plan(None, 4.0);
        let held = plan(Some(&small), 4.0);
        let grown = |p: &moqa::plan::Plan| {
            let both = p.tensors.iter().zip(&small.tensors);
            both.filter(|(a, b)| a.bytes > b.bytes).count()
        };
        assert!(grown(&large) > 100);
        assert_eq!(grown(&held), 0);
        assert_eq!(held.file_bytes, small.file_bytes);
    });
}

#[test]
fn a_type_per_expert_of_a_large_model_takes_seconds() {
    plans_within_its_time(&Scenario::Balanced, Granularity::Expert);
}

#[test]
fn the_worst_domain_of_a_large_model_takes_seconds() {
    plans_within_its_time(&Scenario::Robust, Granularity::Tensor);
}

#[test]
fn types_per_expert_for_the_worst_domain_take_seconds() {
    plans_within_its_time(&Scenario::Robust, Granularity::Expert);
}

#[test]
fn types_per_expert_for_a_workload_take_seconds() {
    let named = vec![("domain 1".to_owned(), 0.7)];
    plans_within_its_time(&Scenario::Workload(named), Granularity::Expert);
}

/// Measurements that were made up: what each plan in turn does, the last for all that follow.
struct Told {
    fares: Vec<[f64; DOMAINS]>,
    plans: Vec<Plan>,
}

impl Fares for Told {
    fn of(&mut self, plan: &Plan) -> anyhow::Result<Vec<f64>> {
        let fares = self.fares[self.plans.len().min(self.fares.len() - 1)];
        self.plans.push(plan.clone());
        Ok(fares.to_vec())
    }
}

#[test]
fn of_measured_plans_the_best_is_taken() {
    with_inputs(|inputs| {
        let (budget, types) = (Budget::BitsPerWeight(3.4), Granularity::Tensor);
        let balanced = plan_for(inputs, budget, &Scenario::Balanced, types, None).unwrap();
        let taken = |scenario: &Scenario, fares: &[[f64; DOMAINS]]| {
            let mut told = Told {
                fares: fares.to_vec(),
                plans: Vec::new(),
            };
            let measured = Measured {
                fares: &mut told,
                known: &|| Ok(inputs.analysis.clone()),
            };
            let plan = plan_for(inputs, budget, scenario, types, Some(measured)).unwrap();
            assert!(told.plans[0].chooses_as(&balanced));
            assert!((2..=7).contains(&told.plans.len()), "{}", told.plans.len());
            let at = told.plans.iter().position(|p| p.chooses_as(&plan));
            at.expect("a plan that was measured")
        };
        let usual = [0.003, 0.003, 0.006, 0.003];
        let better = [0.0031, 0.0031, 0.005, 0.0031];
        let worse = [0.0029, 0.0029, 0.0061, 0.0029];
        assert_eq!(taken(&Scenario::Robust, &[usual, better, worse]), 1);
        assert_eq!(taken(&Scenario::Robust, &[usual, worse]), 0);
        let workload = Scenario::Workload(vec![("domain 2".to_owned(), 0.7)]);
        assert_eq!(taken(&workload, &[usual, better, worse]), 1);
        // Others lose too much.
        let dear = [0.0031, 0.0035, 0.004, 0.0031];
        assert_eq!(taken(&workload, &[usual, dear]), 0);
        // What types cost others may be less than what channels and fit do, which come first.
        let costly = [0.0031, 0.0033, 0.005, 0.0031];
        let cheaper = [0.0031, 0.0032, 0.005, 0.0031];
        let no_gain = [0.003, 0.003, 0.0063, 0.003];
        let of_types = |fares| taken(&workload, &[usual, no_gain, no_gain, no_gain, fares]);
        assert_eq!(taken(&workload, &[usual, costly]), 1);
        assert_eq!(of_types(costly), 0);
        assert_eq!(of_types(cheaper), 4);
        // Balanced types with channels and fit for the workload may be within noise of the balanced plan, not worse.
        let alike = [0.003, 0.003, 0.00605, 0.003];
        assert_eq!(taken(&workload, &[usual, alike, no_gain]), 1);
        assert_eq!(taken(&workload, &[usual, no_gain]), 0);
        // How sharply those go by the mix is measured.
        assert_eq!(taken(&workload, &[usual, alike, better, worse]), 2);
        assert_eq!(taken(&workload, &[usual, dear, alike, better, worse]), 3);
    });
}

/// A workload's text that mostly repeats itself changes no types, and channels and fit no more sharply than its root does.
#[test]
fn text_that_repeats_itself_moves_little() {
    with_inputs(|inputs| {
        let (budget, types) = (Budget::BitsPerWeight(3.4), Granularity::Tensor);
        let workload = Scenario::Workload(vec![("domain 2".to_owned(), 0.7)]);
        // Everything is better and nothing lost, whatever the plan.
        let usual = [0.003, 0.003, 0.006, 0.003];
        let fares: Vec<[f64; DOMAINS]> = (0..8)
            .map(|i| usual.map(|f| f * (1.0 - 0.05 * f64::from(i))))
            .collect();
        let plans = |chunk: Vec<i32>| {
            let mut analysis = inputs.analysis.clone();
            analysis.checks = Sample {
                chunks: vec![chunk],
                domains: vec![2],
            };
            let inputs = PlanInputs {
                analysis: &analysis,
                ..*inputs
            };
            let mut told = Told {
                fares: fares.clone(),
                plans: Vec::new(),
            };
            let measured = Measured {
                fares: &mut told,
                known: &|| Ok(analysis.clone()),
            };
            let taken = plan_for(&inputs, budget, &workload, types, Some(measured)).unwrap();
            let unmeasured = plan_for(&inputs, budget, &workload, types, None).unwrap();
            let balanced = plan_for(&inputs, budget, &Scenario::Balanced, types, None).unwrap();
            (told.plans, [taken, unmeasured], balanced)
        };
        let same_types = |plan: &Plan, other: &Plan| {
            let other = Plan {
                mix: plan.mix.clone(),
                ..other.clone()
            };
            plan.chooses_as(&other)
        };
        let share = |plan: &Plan| plan.mix.get("domain 2").copied().unwrap_or_default();
        let varied = plans((0..256).collect());
        assert!(!varied.1.iter().all(|p| same_types(p, &varied.2)));
        let sharpest = |plans: &[Plan]| plans.iter().map(share).fold(0.0, f64::max);
        assert!((sharpest(&varied.0) - 0.7).abs() < 1e-9);
        let repeated = plans((0..256).map(|i| i % 9).collect());
        for plan in repeated.0.iter().chain(&repeated.1) {
            assert!(same_types(plan, &repeated.2));
        }
        let root = 0.7f64.sqrt() / (0.7f64.sqrt() + 3.0 * 0.1f64.sqrt());
        assert!((sharpest(&repeated.0) - root).abs() < 1e-9);
        assert!((sharpest(&repeated.1) - root).abs() < 1e-9);
    });
}
