//! The report as a page: whole, self-contained, harmless and small.

use moqa::report::{
    AblationBar, AccuracyTest, Coactivation, CurvePoint, DomainShift, ExpertGrid, Grid, ModelInfo,
    PairMeasure, PointKind, ReportData, TensorRow, render,
};

/// A reproducible sequence of numbers from 0 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Shares that sum to `sum`, as skewed as a router's.
    fn shares(&mut self, n: usize, sum: f64) -> Vec<f64> {
        let raw: Vec<f64> = (0..n)
            .map(|_| {
                if self.next() < 0.02 {
                    0.0
                } else {
                    (self.next() * 2.6).exp() - 0.9
                }
            })
            .collect();
        let total: f64 = raw.iter().sum();
        raw.into_iter().map(|v| v / total * sum).collect()
    }

    fn grid(&mut self, rows: usize, cols: usize, sum: f64) -> Grid {
        (0..rows).map(|_| self.shares(cols, sum)).collect()
    }
}

const PRESETS: [(&str, u64, f64, f64, f64); 8] = [
    ("IQ2_XXS", 6_195_872, 0.05193, 1.0547, 0.839),
    ("Q2_K", 8_384_160, 0.02533, 1.0220, 0.886),
    ("IQ3_XXS", 8_624_288, 0.02175, 1.0202, 0.894),
    ("Q3_K_M", 10_644_128, 0.00810, 1.0051, 0.937),
    ("IQ4_XS", 11_758_752, 0.00566, 1.0025, 0.950),
    ("Q4_K_M", 12_943_008, 0.00486, 1.0027, 0.953),
    ("Q5_K_M", 15_179_424, 0.00258, 1.0004, 0.968),
    ("Q6_K", 17_555_616, 0.00186, 1.0004, 0.974),
];

fn tests(kind: PointKind, budget: Option<&str>) -> Vec<AccuracyTest> {
    let test = |against: &str, difference: f64, p_value: f64| AccuracyTest {
        against: against.into(),
        difference,
        interval: [difference - 0.02, difference + 0.02],
        p_value,
        same_choice: 0.93,
    };
    match (kind, budget) {
        (PointKind::Original, _) => Vec::new(),
        (_, None) => vec![test("original", -0.015, 0.0004)],
        (_, Some(preset)) => vec![test("original", -0.01, 0.344), test(preset, 0.005, 1.0)],
    }
}

fn curve() -> Vec<CurvePoint> {
    let point =
        |label: &str, kind, budget: Option<&str>, bytes: u64, kld: f64, ratio: f64, same: f64| {
            CurvePoint {
                label: label.into(),
                kind,
                budget: budget.map(Into::into),
                bytes,
                bpw: bytes as f64 * 8.0 / 21.1e6,
                kld,
                kld_error: kld * 0.03,
                ppl: 34.08 * ratio,
                ppl_ratio: ratio,
                same_top: same,
                accuracy: (kind != PointKind::MoqaPerExpert).then_some(0.612 - kld),
                accuracy_error: Some(0.011),
                accuracy_interval: (kind == PointKind::Moqa).then_some([0.54, 0.67]),
                tasks: Some(200),
                accuracy_tests: tests(kind, budget),
                quantize_seconds: Some(bytes as f64 / 2e6),
                tokens_per_second: Some(4e9 / bytes as f64),
            }
        };
    let original = point(
        "original",
        PointKind::Original,
        None,
        42_449_888,
        0.0,
        1.0,
        1.0,
    );
    let mut points = vec![original];
    for (i, (name, bytes, kld, ratio, same)) in PRESETS.into_iter().enumerate() {
        // Made up; the last one loses.
        let factor = if i == 7 { 1.02 } else { 0.72 + 0.02 * i as f64 };
        points.push(point(
            name,
            PointKind::Preset,
            None,
            bytes,
            kld,
            ratio,
            same,
        ));
        let less = bytes - 1_000;
        points.push(point(
            "moqa",
            PointKind::Moqa,
            Some(name),
            less,
            kld * factor,
            1.0 + (ratio - 1.0) * 0.8,
            same + 0.005,
        ));
        let label = format!("per expert {name}");
        points.push(point(
            &label,
            PointKind::MoqaPerExpert,
            Some(name),
            less - 9_000,
            kld * factor * 0.9,
            1.0 + (ratio - 1.0) * 0.7,
            same + 0.008,
        ));
    }
    points
}

/// A report with every section, for a model of that shape.
pub fn sample(layers: usize, experts: usize, used: usize, domains: usize) -> ReportData {
    let mut random = Random(7);
    let k = used as f64;
    let names = [
        "encyclopedia",
        "fiction",
        "news",
        "law",
        "medicine",
        "mathematics",
        "Rust code",
        "Python code",
        "dialogue",
        "German",
        "Chinese",
        "tool calls",
        "chat with a rather long name",
    ];
    let names: Vec<String> = names.iter().take(domains).map(|s| (*s).into()).collect();
    let activation = random.grid(layers, experts, k);
    let bits_of = |share: f64| -> (f64, &str) {
        let relative = share / k * experts as f64;
        match relative {
            r if r < 0.3 => (2.0625, "iq2_xxs"),
            r if r < 0.9 => (2.625, "q2_K"),
            r if r < 1.6 => (3.4375, "q3_K"),
            r if r < 2.4 => (4.5, "q4_K"),
            _ => (5.5, "q5_K"),
        }
    };
    let mut divergence = vec![vec![0.0; domains]; domains];
    for (a, b) in (0..domains).flat_map(|a| (a + 1..domains).map(move |b| (a, b))) {
        let d = 0.02 + 0.35 * random.next() * random.next();
        (divergence[a][b], divergence[b][a]) = (d, d);
    }
    let coactivation = (0..layers)
        .map(|layer| {
            let frequency = activation[layer].clone();
            let tokens = 65_536;
            let mut matrix = vec![vec![0.0; experts]; experts];
            for a in 0..experts {
                for b in a + 1..experts {
                    let chance = frequency[a] * frequency[b] * tokens as f64;
                    let n = (chance * (0.4 + 4.0 * random.next().powi(4))).round();
                    (matrix[a][b], matrix[b][a]) = (n, n);
                }
            }
            Coactivation {
                layer,
                n_expert: experts,
                measure: PairMeasure::Counts,
                matrix,
                frequency,
                tokens,
            }
        })
        .collect();
    let mut ablation = Vec::new();
    for (budget, full) in [("IQ2_XXS", 0.0405), ("Q3_K_M", 0.0063), ("Q4_K_M", 0.00379)] {
        for (stage, worse) in [
            ("importance data", 1.41),
            ("measured sensitivity", 1.16),
            ("types by error", 1.09),
            ("importance of each expert by itself", 1.035),
            ("correction of unreached experts", 0.985),
        ] {
            ablation.push(AblationBar {
                stage: stage.into(),
                budget: budget.into(),
                kld: full * worse,
                kld_error: full * 0.03,
                full_kld: full,
                interval: Some([worse - 1.02, worse - 0.98]),
            });
        }
    }
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for (part, role, ty, size) in [
            ("attn_q", "attention query", "q5_K", 1.0),
            ("attn_k", "attention key", "q6_K", 0.3),
            ("attn_v", "attention value", "q8_0", 0.3),
            ("attn_output", "attention output", "q5_K", 1.0),
            ("ffn_gate_inp", "router", "f32", 0.2),
            (
                "ffn_gate_exps",
                "expert gate",
                if layer % 3 == 0 { "q3_K" } else { "iq2_xxs" },
                20.0,
            ),
            (
                "ffn_up_exps",
                "expert up",
                if layer % 2 == 0 { "q3_K" } else { "iq3_xxs" },
                20.0,
            ),
            (
                "ffn_down_exps",
                "expert down",
                if layer % 4 == 0 { "q4_K" } else { "q3_K" },
                20.0,
            ),
        ] {
            tensors.push(TensorRow {
                name: format!("blk.{layer}.{part}.weight"),
                role: role.into(),
                ty: ty.into(),
                bytes: (size * 6e4) as u64,
                parts: if part == "ffn_down_exps" {
                    vec![("q3_K".into(), 40_000), ("q6_K".into(), 20_000)]
                } else {
                    Vec::new()
                },
                error: 0.03 * random.next(),
                cost: 1e-4 * random.next().powi(3),
            });
        }
    }
    let sensitivity = activation
        .iter()
        .enumerate()
        .map(|(l, row)| {
            let depth = if l == layers / 2 {
                f64::NAN
            } else {
                1e-4 * (1.0 + 4.0 / (l + 1) as f64)
            };
            row.iter().map(|s| s * depth * random.next()).collect()
        })
        .collect();
    ReportData {
        title: "Quantizing the lab model".into(),
        model: ModelInfo {
            architecture: "qwen3moe".into(),
            name: "lab-moe".into(),
            n_layer: layers,
            n_expert: experts,
            n_expert_used: used,
            parameters: 21_100_000,
            bytes: 42_700_000,
        },
        generated_by: "moqa 0.1.0".into(),
        curve: Some(curve()),
        curve_notes: vec!["accuracy on 200 tasks <of> some text".into()],
        experts: Some(ExpertGrid {
            layers: (0..layers).collect(),
            n_expert: experts,
            gate_mass: Some(random.grid(layers, experts, 1.0)),
            sensitivity: Some(sensitivity),
            sensitivity_type: "q3_K".into(),
            sensitivity_roles: vec!["expert up".into(), "expert down".into()],
            bits: Some(
                activation
                    .iter()
                    .map(|r| r.iter().map(|s| bits_of(*s).0).collect())
                    .collect(),
            ),
            types: Some(
                activation
                    .iter()
                    .map(|r| r.iter().map(|s| bits_of(*s).1.into()).collect())
                    .collect(),
            ),
            activation,
        }),
        domains: Some(DomainShift {
            divergence,
            per_domain: names
                .iter()
                .map(|n| (n.clone(), random.grid(layers, experts, k)))
                .collect(),
            names,
        }),
        coactivation: Some(coactivation),
        ablation: Some(ablation),
        tensors: Some(tensors),
    }
}

/// Checks that tags are balanced, attributes quoted and unique, references known and ids unique. Stricter than
/// HTML: what passes is also well-formed XML but for the scripts and styles.
fn check_markup(page: &str) {
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>\n")
        .expect("a document type");
    let mut open: Vec<&str> = Vec::new();
    let mut ids = std::collections::HashSet::new();
    loop {
        let Some(at) = rest.find('<') else {
            check_text(rest);
            break;
        };
        check_text(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('/') {
            let end = after.find('>').expect("an end tag ends");
            assert_eq!(open.pop(), Some(&after[..end]), "end tag does not match");
            rest = &after[end + 1..];
            continue;
        }
        let name_end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap();
        let name = &rest[..name_end];
        assert!(
            !name.is_empty(),
            "a bare <: {}",
            &rest[..rest.len().min(60)]
        );
        rest = &rest[name_end..];
        let mut seen = Vec::new();
        let closed = loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix("/>") {
                rest = after;
                break true;
            }
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break false;
            }
            let (attribute, after) = rest
                .split_once("=\"")
                .expect("an attribute in double quotes");
            assert!(
                !attribute.is_empty()
                    && attribute
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "-:_".contains(c)),
                "attribute {attribute:?} of {name}"
            );
            assert!(!seen.contains(&attribute), "{attribute} twice in {name}");
            assert!(!attribute.starts_with("on"), "event handler {attribute}");
            seen.push(attribute);
            let (value, after) = after.split_once('"').expect("a closing quote");
            check_text(value);
            assert!(!value.contains('<'), "{value}");
            if attribute == "id" {
                assert!(ids.insert(value), "id {value} twice");
            }
            rest = after;
        };
        if ["script", "style"].contains(&name) && !closed {
            let end = rest.find(&format!("</{name}>")).expect("raw text ends");
            assert!(!rest[..end].contains("<!--"));
            rest = &rest[end..];
        }
        if !closed {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    for reference in page.split("aria-labelledby=\"").skip(1) {
        for id in reference.split('"').next().unwrap().split(' ') {
            assert!(ids.contains(id), "{id} is referred to and missing");
        }
    }
}

fn check_text(text: &str) {
    assert!(!text.contains("NaN") && !text.contains("inf%"), "{text}");
    for part in text.split('&').skip(1) {
        let name = part.split(';').next().unwrap();
        assert!(
            ["amp", "lt", "gt", "quot", "#39"].contains(&name),
            "&{name}"
        );
    }
}

fn check_self_contained(page: &str) {
    for outside in [
        "http://", "https://", "src=", "<link", "<img", "<image", "@import", "url(", "<iframe",
        "xlink:",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with('#'), "{}", &link[..40]);
    }
}

#[test]
fn nothing_measured_still_makes_a_page() {
    let page = render(&ReportData::default());
    check_markup(&page);
    check_self_contained(&page);
    assert!(page.contains("Nothing has been measured"));
    let empty = ReportData {
        curve: Some(vec![]),
        experts: Some(ExpertGrid::default()),
        domains: Some(DomainShift::default()),
        coactivation: Some(vec![Coactivation::default()]),
        ablation: Some(vec![]),
        tensors: Some(vec![]),
        ..ReportData::default()
    };
    assert!(render(&empty) == page);
}

#[test]
fn each_section_stands_alone() {
    let whole = sample(6, 16, 2, 5);
    let none = ReportData {
        title: whole.title.clone(),
        ..ReportData::default()
    };
    for (id, data) in [
        (
            "curve",
            ReportData {
                curve: whole.curve.clone(),
                ..none.clone()
            },
        ),
        (
            "experts",
            ReportData {
                experts: whole.experts.clone(),
                ..none.clone()
            },
        ),
        (
            "domains",
            ReportData {
                domains: whole.domains.clone(),
                ..none.clone()
            },
        ),
        (
            "coactivation",
            ReportData {
                coactivation: whole.coactivation.clone(),
                ..none.clone()
            },
        ),
        (
            "ablation",
            ReportData {
                ablation: whole.ablation.clone(),
                ..none.clone()
            },
        ),
        (
            "tensors",
            ReportData {
                tensors: whole.tensors.clone(),
                ..none.clone()
            },
        ),
    ] {
        let page = render(&data);
        check_markup(&page);
        assert_eq!(page.matches("<section ").count(), 1, "{id}");
        assert!(page.contains(&format!("<section id=\"{id}\"")));
    }
    let page = render(&whole);
    check_markup(&page);
    check_self_contained(&page);
    assert_eq!(page.matches("<section ").count(), 6);
    // The figures are there without the charts: a table has every point.
    for (name, ..) in PRESETS {
        assert!(page.contains(&format!(">{name}</th>")), "{name}");
    }
    assert!(page.contains("in 7 of 8: −28 % to +2.0 %, median −21 %"));
}

#[test]
fn names_cannot_inject_anything() {
    let evil = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;</title></style>--><!-- \u{202e}\u{0}]]>";
    let mut data = sample(3, 8, 2, 3);
    data.title = evil.into();
    data.generated_by = evil.into();
    data.model.name = evil.into();
    data.model.architecture = evil.into();
    for p in data.curve.as_mut().unwrap() {
        p.label = evil.into();
        p.budget = Some(evil.into());
    }
    for t in data
        .experts
        .as_mut()
        .unwrap()
        .types
        .as_mut()
        .unwrap()
        .iter_mut()
        .flatten()
    {
        *t = evil.into();
    }
    let experts = data.experts.as_mut().unwrap();
    experts.sensitivity_type = evil.into();
    experts.sensitivity_roles = vec![evil.into()];
    let domains = data.domains.as_mut().unwrap();
    domains.names.fill(evil.into());
    domains
        .per_domain
        .iter_mut()
        .for_each(|d| d.0 = evil.into());
    for b in data.ablation.as_mut().unwrap() {
        b.stage = evil.into();
        b.budget = evil.into();
    }
    for t in data.tensors.as_mut().unwrap() {
        t.name = evil.into();
        t.role = evil.into();
        t.ty = evil.into();
    }
    let page = render(&data);
    check_markup(&page);
    assert!(!page.contains("<script>alert") && !page.contains("<img") && !page.contains("<!--"));
    assert!(!page.contains('\u{202e}') && !page.contains('\u{0}'));
    // Ours: the figures of the heatmap and the script itself.
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(
        page.matches("</title>").count(),
        page.matches("<title").count()
    );
}

#[test]
fn senseless_values_are_shown_as_missing() {
    let bad = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1.0,
        0.0,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
    ];
    let ragged: Grid = vec![vec![], vec![f64::NAN; 3], vec![1.0], bad.to_vec()];
    let mut data = sample(2, 4, 1, 2);
    data.curve = Some(
        bad.iter()
            .flat_map(|v| bad.iter().map(move |w| (*v, *w)))
            .map(|(v, w)| CurvePoint {
                label: "x".repeat(90),
                bytes: u64::MAX,
                bpw: w,
                kld: v,
                kld_error: w,
                ppl: w,
                ppl_ratio: v,
                same_top: w,
                accuracy: Some(v),
                accuracy_error: Some(w),
                accuracy_interval: Some([v, w]),
                tasks: Some(usize::MAX),
                accuracy_tests: vec![AccuracyTest {
                    against: "x".repeat(90),
                    difference: v,
                    interval: [v, w],
                    p_value: w,
                    same_choice: v,
                }],
                quantize_seconds: Some(v),
                tokens_per_second: Some(w),
                budget: Some("x".repeat(90)),
                ..CurvePoint::default()
            })
            .collect(),
    );
    data.experts = Some(ExpertGrid {
        layers: vec![0, usize::MAX, 2, 3, 4],
        n_expert: usize::MAX,
        activation: ragged.clone(),
        gate_mass: Some(ragged.clone()),
        sensitivity: Some(vec![]),
        sensitivity_type: "q3_K".into(),
        sensitivity_roles: vec![],
        bits: Some(ragged.clone()),
        types: Some(vec![vec!["q4_K".into(); 3], vec![], vec!["x".into()]]),
    });
    data.domains = Some(DomainShift {
        names: vec!["a".into(), "b".into(), "c".into()],
        divergence: ragged.clone(),
        per_domain: vec![("a".into(), ragged.clone()), ("z".into(), vec![])],
    });
    data.coactivation = Some(vec![
        Coactivation {
            matrix: ragged.clone(),
            frequency: bad.to_vec(),
            tokens: u64::MAX,
            n_expert: usize::MAX,
            ..Coactivation::default()
        },
        Coactivation {
            matrix: ragged.clone(),
            measure: PairMeasure::Counts,
            ..Coactivation::default()
        },
        Coactivation {
            matrix: vec![bad.to_vec(); 8],
            ..Coactivation::default()
        },
    ]);
    data.ablation = Some(
        bad.iter()
            .flat_map(|v| {
                bad.iter().map(move |w| AblationBar {
                    kld: *v,
                    full_kld: *w,
                    kld_error: *w,
                    interval: Some([*v, *w]),
                    ..AblationBar::default()
                })
            })
            .collect(),
    );
    data.tensors = Some(
        bad.iter()
            .map(|v| TensorRow {
                error: *v,
                cost: *v,
                bytes: u64::MAX,
                ..TensorRow::default()
            })
            .collect(),
    );
    let page = render(&data);
    check_markup(&page);
    let lonely = ExpertGrid {
        layers: vec![5],
        n_expert: usize::MAX,
        bits: Some(vec![vec![4.5]]),
        ..ExpertGrid::default()
    };
    let page = render(&ReportData {
        experts: Some(lonely),
        ..ReportData::default()
    });
    check_markup(&page);
    assert!(page.len() < 100_000);
}

#[test]
fn big_models_make_small_pages() {
    for (layers, experts, used) in [(48, 128, 8), (64, 256, 8)] {
        let page = render(&sample(layers, experts, used, 13));
        assert!(
            page.len() < 3_000_000,
            "{layers} x {experts}: {} bytes",
            page.len()
        );
        check_markup(&page);
        check_self_contained(&page);
    }
}

#[test]
fn the_same_data_give_the_same_page() {
    let data = sample(6, 16, 2, 5);
    assert!(render(&data) == render(&data.clone()));
}

#[test]
fn data_survive_json_with_values_missing() {
    let data = sample(4, 8, 2, 3);
    let json = serde_json::to_string(&data).unwrap();
    let back: ReportData = serde_json::from_str(&json).unwrap();
    // NaN is not equal to itself, so the pages are compared.
    assert!(render(&back) == render(&data));
    assert!(
        json.contains("\"kind\":\"moqa per expert\"") && json.contains("\"measure\":\"counts\"")
    );
    let little: ReportData =
        serde_json::from_str(r#"{"title":"t","curve":[{"label":"Q4_0","bytes":5,"kld":null}]}"#)
            .unwrap();
    check_markup(&render(&little));
    assert!(serde_json::from_str::<ReportData>(r#"{"curve":[{"kind":"magic"}]}"#).is_err());
}

#[test]
fn older_bars_and_grids_are_read() {
    let older: ReportData = serde_json::from_str(
        r#"{"experts":{"layers":[0],"n_expert":2,"activation":[[0.5,0.5]],"sensitivity":[[1e-4,2e-4]]},
            "ablation":[{"stage":"mapping","budget":"Q3_K_M","kld":0.012,"kld_error":0.001,"full_kld":0.01}]}"#,
    )
    .unwrap();
    assert_eq!(older.ablation.as_ref().unwrap()[0].interval, None);
    let page = render(&older);
    check_markup(&page);
    assert!(page.contains("suffers when the expert is quantized, in nats"));
    assert!(page.contains("+20 %") && !page.contains("95 % interval"));
}

#[test]
fn what_was_not_measured_is_no_zero() {
    let mut data = sample(4, 8, 2, 3);
    let experts = data.experts.as_mut().unwrap();
    experts.sensitivity = Some((0..4).map(|l| vec![[1e-4, f64::NAN][l % 2]; 8]).collect());
    let page = render(&data);
    check_markup(&page);
    assert!(page.contains("quantized to q3_K (expert up, expert down), in nats"));
    let panel = page
        .split("aria-labelledby=\"heat-sensitivity-t")
        .nth(1)
        .unwrap();
    let panel = &panel[..panel.find("heat-types").unwrap()];
    assert!(panel.contains("not measured") && !panel.contains("> zero</span>"));
    // In the table by layer such a layer has no mean.
    assert!(page.contains("data-v=\"1.00000e-4\">0.000100</td>"));
    assert!(page.contains("data-v=\"\">–</td>"));
}

/// The heatmap draws each cell once, in the level of its value.
#[test]
fn heatmap_cells_cover_the_grid() {
    let (layers, experts) = (5, 12);
    let page = render(&sample(layers, experts, 2, 2));
    let map = page
        .split("aria-labelledby=\"heat-activation-t")
        .nth(1)
        .unwrap();
    let map = &map[..map.find("</svg>").unwrap()];
    let mut covered = vec![vec![0; experts]; layers];
    for path in map.split("<path class=\"").skip(1) {
        let (class, rest) = path.split_once("\" d=\"").unwrap();
        if class == "cross" {
            continue;
        }
        let path = rest.split('"').next().unwrap();
        let (mut x, mut y) = (0usize, 0usize);
        for command in path
            .replace('M', "|M")
            .replace('m', "|m")
            .replace('h', "|h")
            .split('|')
            .skip(1)
        {
            let numbers: Vec<usize> = command[1..]
                .split(' ')
                .map(|n| n.parse().unwrap())
                .collect();
            match (&command[..1], numbers.as_slice()) {
                ("M", [a, b]) => (x, y) = (*a, *b),
                ("m", [a, 0]) => x += a,
                ("h", [n]) => {
                    covered[y][x..x + n].iter_mut().for_each(|c| *c += 1);
                    x += n;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(covered.iter().flatten().all(|c| *c == 1), "{covered:?}");
}
