//! Plans from little calibration text are no nonsense: not worse than the preset made from the same text, with a type
//! for each tensor and with a type for each expert, on text of other kinds.

mod common;

use common::{lab_model, moqa_ok, s, science_text};

/// KL divergence over the preset's, of our plan and of the plan by expert, from calibration on `text`.
fn ratios(text: &str, ctx: &str) -> Vec<(String, f64)> {
    let dir = tempfile::tempdir().unwrap();
    let (own, analysis) = (dir.path().join("own.txt"), dir.path().join("a.moqa"));
    std::fs::write(&own, text).unwrap();
    let model = lab_model();
    moqa_ok(&[
        "analyze",
        s(&model),
        "-o",
        s(&analysis),
        "--text",
        s(&own),
        "--ctx",
        ctx,
        "--chunks",
        "8",
        "--sensitivity",
        "1",
        "--threads",
        "1",
        "-q",
    ]);
    let other: Vec<_> = [
        "fiction.txt",
        "code_systems.txt",
        "news.txt",
        "structured.txt",
    ]
    .map(|name| science_text().with_file_name(name))
    .into();
    let mut args = vec![
        "compare",
        s(&model),
        "--analysis",
        s(&analysis),
        "--eval-text",
    ];
    args.extend(other.iter().map(|p| s(p)));
    args.extend([
        "--eval-chunks",
        "24",
        "--ctx",
        "128",
        "--budgets",
        "Q3_K_M",
        "--no-tasks",
        "--per-expert",
        "--threads",
        "1",
        "--json",
        "-q",
    ]);
    let found: serde_json::Value = serde_json::from_str(&moqa_ok(&args)).unwrap();
    let rows = found["points"].as_array().unwrap();
    let kld = |row: &serde_json::Value| row["kld"].as_f64().unwrap();
    let preset = rows.iter().find(|r| r["kind"] == "preset").unwrap();
    let ours = rows
        .iter()
        .filter(|r| r["kind"].as_str().unwrap().starts_with("moqa"));
    ours.map(|r| (r["kind"].as_str().unwrap().to_owned(), kld(r) / kld(preset)))
        .collect()
}

#[test]
fn two_thousand_tokens_of_one_kind_are_enough() {
    let text = std::fs::read_to_string(science_text()).unwrap();
    // Eight chunks of 250 tokens.
    let found = ratios(&text, "250");
    assert_eq!(found.len(), 2);
    for (name, ratio) in found {
        assert!(ratio < 0.85, "{name}: {ratio}");
    }
}

#[test]
fn a_line_that_leaves_experts_without_a_token_does_no_harm() {
    let found = ratios("one two three four five six seven eight nine", "64");
    assert_eq!(found.len(), 2);
    for (name, ratio) in found {
        assert!(ratio < 1.0, "{name}: {ratio}");
    }
}
