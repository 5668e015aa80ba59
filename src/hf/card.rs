//! What a folder says about the model: the front matter of its model card, its name, its generation settings.
//! The keys are those that llama.cpp's converter writes, found by the same rules.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;
use serde_json::{Map, Value as Json};
use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

use super::config::{as_u32, read_json, read_text};
use crate::gguf::{Array, Metadata, Value};

/// The largest model card that is read, in bytes.
const MAX_CARD: u64 = 16 << 20;
/// The largest front matter, in bytes.
const MAX_FRONT_MATTER: usize = 256 << 10;
/// Columns of indentation and list markers before the text of a line. Bounds how deep lists nest.
const MAX_INDENT: usize = 256;

/// Parameters of the tensors that were written, for the size label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterCount {
    /// All.
    pub total: u64,
    /// Of all tensors but the experts'.
    pub shared: u64,
    /// Of one expert of each layer.
    pub expert: u64,
    /// Experts a layer.
    pub n_expert: u64,
}

impl ParameterCount {
    /// Adds a tensor; shape with the slowest dimension first.
    pub fn add(&mut self, name: &str, shape: &[u64], expert_tensors: &mut u64) {
        let n = shape.iter().product::<u64>();
        self.total += n;
        let axis = if name.contains(".bias") { 2 } else { 3 };
        if name.contains("_exps.") && shape.len() >= 3 {
            let experts = shape[shape.len() - axis].max(1);
            self.expert += n / experts;
            self.n_expert += experts;
            *expert_tensors += 1;
        } else {
            self.shared += n;
        }
    }

    /// `8x7B`, or `7B` for a model without experts.
    pub fn label(&self) -> String {
        if self.n_expert > 0 {
            format!("{}x{}", self.n_expert, rounded(self.shared + self.expert))
        } else {
            rounded(self.total)
        }
    }
}

/// A count with two digits or more: `7.2B`, `132K`.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, suffix) = if count > 1e12 {
        (count * 1e-12, "T")
    } else if count > 1e9 {
        (count * 1e-9, "B")
    } else if count > 1e6 {
        (count * 1e-6, "M")
    } else {
        (count * 1e-3, "K")
    };
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 {
        0
    } else {
        format!("{whole}").len()
    };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

/// Everything that is known about the model; each field a key of the same name under `general`.
#[derive(Debug, Default)]
struct Facts {
    name: Option<String>,
    author: Option<String>,
    version: Option<String>,
    organization: Option<String>,
    finetune: Option<String>,
    basename: Option<String>,
    description: Option<String>,
    size_label: Option<String>,
}

/// Writes the `general.*` keys that describe the model. `notes` receives what could not be read.
///
/// # Errors
/// `config.json` cannot be read.
pub fn describe(
    dir: &Path,
    config: &Json,
    count: ParameterCount,
    metadata: &mut Metadata,
    notes: &mut Vec<String>,
) -> Result<()> {
    let card = model_card(dir, notes);
    let text = |keys: &[&str]| keys.iter().find_map(|k| card.get(*k).and_then(as_text));
    let mut facts = Facts {
        name: text(&["name", "model_name"]),
        author: text(&["author", "model_author", "model_creator"]),
        version: text(&["version", "model_version"]),
        organization: text(&["organization", "model_organization"]),
        finetune: text(&["finetune", "model_finetune"]),
        basename: text(&["basename", "model_basename", "model_type"]),
        description: text(&["description", "model_description"]),
        size_label: text(&["size_label", "model_size_label"]),
    };
    let path = config
        .get("_name_or_path")
        .and_then(Json::as_str)
        .filter(|p| p.matches('/').count() <= 1 && !p.is_empty());
    for id in path.into_iter().chain(folder_name(dir).as_deref()) {
        facts.complete(NameParts::parse(id, count.total));
    }

    sampling(dir, metadata);
    let folder = folder_name(dir).unwrap_or_else(|| "model".into());
    let size_label = facts.size_label.unwrap_or_else(|| count.label());
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            metadata.set(format!("general.{key}"), value.as_str());
        }
    };
    set("name", Some(facts.name.unwrap_or(folder)));
    set("author", facts.author);
    set("version", facts.version);
    set("organization", facts.organization);
    set("finetune", facts.finetune);
    set("basename", facts.basename);
    set("description", facts.description);
    set("size_label", (count.total > 0).then_some(size_label));
    let license = card.get("license").and_then(|v| match v {
        Json::Array(list) => Some(
            list.iter()
                .filter_map(as_text)
                .collect::<Vec<_>>()
                .join(","),
        ),
        other => as_text(other),
    });
    set("license", license);
    set("license.name", text(&["license_name"]));
    set("license.link", text(&["license_link"]));
    set("source.url", text(&["url", "model_url"]));
    set("source.doi", text(&["doi", "model_doi"]));
    set("source.uuid", text(&["uuid", "model_uuid"]));
    set("source.repo_url", text(&["repo_url", "model_repo_url"]));
    relatives(
        &card,
        &["base_model", "base_models", "base_model_sources"],
        "base_model",
        count.total,
        metadata,
    );
    relatives(
        &card,
        &["datasets", "dataset", "dataset_sources"],
        "dataset",
        count.total,
        metadata,
    );
    for (key, fields) in [
        ("tags", ["tags", "pipeline_tag"]),
        ("languages", ["languages", "language"]),
    ] {
        let found: Vec<String> = fields
            .iter()
            .filter_map(|f| card.get(*f))
            .flat_map(list_of_texts)
            .collect();
        if !found.is_empty() {
            let strings = found.iter().map(String::as_bytes).collect();
            metadata.set(format!("general.{key}"), Value::Array(Array::Str(strings)));
        }
    }
    Ok(())
}

/// The sampling settings of `generation_config.json`, which many folders lack or leave empty.
fn sampling(dir: &Path, metadata: &mut Metadata) {
    let Ok(Json::Object(settings)) = read_json(&dir.join("generation_config.json")) else {
        return;
    };
    let number = |key: &str| settings.get(key).and_then(Json::as_f64).map(|v| v as f32);
    let whole = |key: &str| settings.get(key).and_then(as_u32).map(|v| v as i32);
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            metadata.set(format!("general.sampling.{key}"), value);
        }
    };
    let sequence = settings.get("sequence").and_then(Json::as_str);
    set("sequence", sequence.map(Value::from));
    set("top_k", whole("top_k").map(Value::I32));
    set("top_p", number("top_p").map(Value::F32));
    set("min_p", number("min_p").map(Value::F32));
    let xtc = number("xtc_probability");
    set("xtc_probability", xtc.map(Value::F32));
    set("xtc_threshold", number("xtc_threshold").map(Value::F32));
    set("temp", number("temperature").map(Value::F32));
    set("penalty_last_n", whole("penalty_last_n").map(Value::I32));
    let repeat = number("penalty_repeat").or_else(|| number("repetition_penalty"));
    set("penalty_repeat", repeat.map(Value::F32));
    set("mirostat", whole("mirostat").map(Value::I32));
    set("mirostat_tau", number("mirostat_tau").map(Value::F32));
    set("mirostat_eta", number("mirostat_eta").map(Value::F32));
}

/// Models or datasets that this one was made from.
fn relatives(
    card: &Map<String, Json>,
    fields: &[&str],
    key: &str,
    total: u64,
    metadata: &mut Metadata,
) {
    let Some(value) = fields.iter().find_map(|f| card.get(*f)) else {
        return;
    };
    let entries: Vec<&Json> = match value {
        Json::Array(list) => list.iter().collect(),
        Json::Null => Vec::new(),
        other => vec![other],
    };
    metadata.set(format!("general.{key}.count"), entries.len() as u32);
    for (i, entry) in entries.into_iter().enumerate() {
        let mut set = |what: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.set(format!("general.{key}.{i}.{what}"), value.as_str());
            }
        };
        match entry {
            Json::Object(parts) => {
                for what in [
                    "name",
                    "author",
                    "version",
                    "organization",
                    "description",
                    "url",
                    "doi",
                    "uuid",
                    "repo_url",
                ] {
                    set(what, parts.get(what).and_then(as_text));
                }
            }
            other => {
                let Some(id) = as_text(other) else { continue };
                let is_url = ["http://", "https://", "ssh://"]
                    .iter()
                    .any(|p| id.starts_with(p));
                let hub = ["https://huggingface.co/", "http://huggingface.co/"]
                    .iter()
                    .find_map(|p| id.strip_prefix(p))
                    .filter(|rest| {
                        rest.split('/').count() == 2 && rest.split('/').all(|p| !p.is_empty())
                    });
                let parts = match (is_url, hub) {
                    (true, None) => NameParts::default(),
                    (true, Some(rest)) => NameParts::parse(rest, total),
                    (false, _) => NameParts::parse(&id, total),
                };
                set("name", parts.full_name.as_deref().map(title));
                set("version", parts.version);
                set("organization", parts.organization.as_deref().map(title));
                let repo = match (is_url, &parts.organization, &parts.full_name) {
                    (true, ..) => Some(id),
                    (false, Some(o), Some(n)) => Some(format!("https://huggingface.co/{o}/{n}")),
                    _ => None,
                };
                set("repo_url", repo);
            }
        }
    }
}

impl Facts {
    /// Fills what is missing from a name.
    fn complete(&mut self, parts: NameParts) {
        let fill = |slot: &mut Option<String>, value: Option<String>| {
            if slot.is_none() {
                *slot = value;
            }
        };
        fill(&mut self.name, parts.full_name.as_deref().map(title));
        fill(
            &mut self.organization,
            parts.organization.as_deref().map(title),
        );
        fill(&mut self.basename, parts.basename);
        fill(&mut self.finetune, parts.finetune);
        fill(&mut self.version, parts.version);
        fill(&mut self.size_label, parts.size_label);
    }
}

/// What a name such as `mistralai/Mixtral-8x7B-Instruct-v0.1` is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NameParts {
    full_name: Option<String>,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    Type,
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(v|iter)?\d+([.]\d+)*$"));
static TYPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(i?q\d(_\w)*|b?fp?(16|32))$"));
static SIZE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)^(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)$")
});
static TUNED: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(chat|instruct|vision|lora)$"));
static UNTITLED: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(v\d+(?:\.\d+)*|\d.*)$"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern that is part of the program")
}

impl NameParts {
    fn parse(id: &str, total: u64) -> NameParts {
        if id.contains(' ') {
            // A sentence, not an identifier.
            return NameParts {
                full_name: Some(id.to_owned()),
                ..NameParts::default()
            };
        }
        let (organization, full_name) = match id.split_once('/') {
            Some((o, n)) => (Some(o).filter(|o| !o.starts_with('.')), n),
            None => (None, id),
        };
        let mut parts: Vec<String> = full_name
            .split('-')
            .filter(|p| !p.is_empty())
            .map(str::to_owned)
            .collect();
        let mut kinds: Vec<BTreeSet<Kind>> = vec![BTreeSet::new(); parts.len()];
        for (i, (part, kind)) in parts.iter_mut().zip(&mut kinds).enumerate() {
            if VERSION.is_match(part) {
                kind.insert(Kind::Version);
            } else if TYPE.is_match(part) {
                kind.insert(Kind::Type);
                *part = part.to_uppercase();
            } else if i > 0 && SIZE.is_match(part) {
                let (label, is_size) = normal_size(part, total);
                *part = label;
                kind.insert(if is_size {
                    Kind::SizeLabel
                } else {
                    Kind::Finetune
                });
            } else if i > 0 && TUNED.is_match(part) {
                kind.insert(Kind::Finetune);
            }
        }
        // Words such as "mini" are sizes only where no number is.
        let numbered = parts
            .iter()
            .zip(&kinds)
            .any(|(p, k)| k.contains(&Kind::SizeLabel) && p.contains(|c: char| c.is_ascii_digit()));
        let mut at_start = true;
        for (part, kind) in parts.iter().zip(&mut kinds) {
            if numbered && part.chars().all(char::is_alphabetic) {
                kind.remove(&Kind::SizeLabel);
            }
        }
        for (part, kind) in parts.iter().zip(&mut kinds) {
            let opens = kind.is_empty() && part.starts_with(char::is_alphabetic);
            if at_start && (opens || kind.contains(&Kind::Version)) {
                kind.insert(Kind::Basename);
            } else {
                at_start = false;
                if kind.is_empty() {
                    kind.insert(Kind::Finetune);
                }
            }
        }
        // A version at the end is none of the base name's.
        for kind in kinds.iter_mut().rev() {
            if kind.contains(&Kind::Basename) && kind.len() > 1 {
                kind.remove(&Kind::Basename);
            } else {
                break;
            }
        }
        let joined = |wanted: &dyn Fn(&BTreeSet<Kind>) -> bool, once: bool| {
            let mut chosen: Vec<&str> = Vec::new();
            for (part, kind) in parts.iter().zip(&kinds) {
                if wanted(kind) && !(once && chosen.contains(&part.as_str())) {
                    chosen.push(part);
                }
            }
            (!chosen.is_empty()).then(|| chosen.join("-"))
        };
        let size_label = joined(&|k| k.contains(&Kind::SizeLabel), true);
        let finetune = joined(&|k| k.contains(&Kind::Finetune), false);
        let version = joined(
            &|k| k.contains(&Kind::Version) && !k.contains(&Kind::Basename),
            false,
        );
        let basename = joined(&|k| k.contains(&Kind::Basename), false)
            // Without anything else the name is too ambiguous to be taken apart.
            .filter(|_| size_label.is_some() || finetune.is_some() || version.is_some());
        NameParts {
            full_name: Some(full_name.to_owned()),
            organization: organization.map(str::to_owned),
            basename,
            finetune,
            version,
            size_label,
        }
    }
}

/// A size such as `7b1` as `7.1B`, and whether it can be the size of a model of `total` parameters; else it
/// is likely a context length.
fn normal_size(part: &str, total: u64) -> (String, bool) {
    let mut label = part.replace('_', ".");
    let bytes = label.as_bytes();
    if let [.., unit, digit] = bytes
        && digit.is_ascii_digit()
    {
        let (unit, digit) = (char::from(*unit), char::from(*digit));
        label = format!("{}.{digit}{unit}", &label[..label.len() - 2]);
    }
    let bytes = label.as_bytes();
    if let [.., before, unit] = bytes
        && before.is_ascii_digit()
        && b"kmbt".contains(unit)
    {
        let unit = char::from(*unit).to_ascii_uppercase();
        label = format!("{}{unit}", &label[..label.len() - 1]);
    }
    let power = |unit: char| " KMBT".find(unit);
    let stated = label.chars().last().and_then(|unit| {
        let number: f64 = label[..label.len() - unit.len_utf8()].parse().ok()?;
        Some(number * 1000f64.powi(power(unit)? as i32))
    });
    let total = total as f64;
    match stated {
        Some(n) if total > 0.0 && (n - total).abs() > (7.0 * total / 8.0).floor() => {
            let unit = label.pop().unwrap_or('K').to_ascii_lowercase();
            (format!("{label}{unit}"), false)
        }
        _ => (label, true),
    }
}

/// An identifier as a title: `mixtral-8x7b` becomes `Mixtral 8x7b`.
fn title(id: &str) -> String {
    let is_lower =
        |w: &str| w.chars().any(char::is_lowercase) && !w.chars().any(char::is_uppercase);
    id.trim()
        .replace('-', " ")
        .split_whitespace()
        .map(|w| {
            if !is_lower(w) || UNTITLED.is_match(w) {
                return w.to_owned();
            }
            let mut inside = false;
            w.chars()
                .flat_map(|c| {
                    let starts = c.is_alphabetic() && !inside;
                    inside = c.is_alphabetic();
                    if starts {
                        c.to_uppercase().collect::<Vec<_>>()
                    } else {
                        vec![c]
                    }
                })
                .collect()
        })
        .collect::<Vec<String>>()
        .join(" ")
}

fn folder_name(dir: &Path) -> Option<String> {
    let name = |p: &Path| p.file_name()?.to_str().map(str::to_owned);
    // "." and ".." have no name of their own.
    name(dir).or_else(|| name(&dir.canonicalize().ok()?))
}

fn as_text(value: &Json) -> Option<String> {
    match value {
        Json::String(s) => Some(s.clone()),
        Json::Number(n) => Some(n.to_string()),
        Json::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn list_of_texts(value: &Json) -> Vec<String> {
    match value {
        Json::Array(list) => list.iter().filter_map(as_text).collect(),
        other => as_text(other).into_iter().collect(),
    }
}

/// The front matter of `README.md`; empty if there is none. A card that cannot be read costs its facts only.
fn model_card(dir: &Path, notes: &mut Vec<String>) -> Map<String, Json> {
    let path = dir.join("README.md");
    if !path.is_file() {
        return Map::new();
    }
    let card = read_text(&path, MAX_CARD).and_then(|text| parse_front_matter(&text));
    card.unwrap_or_else(|e| {
        notes.push(format!(
            "note: {}: the front matter cannot be read and is left out: {e:#}",
            path.display()
        ));
        Map::new()
    })
}

fn parse_front_matter(text: &str) -> Result<Map<String, Json>> {
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(Map::new());
    }
    let mut yaml = String::new();
    for line in lines.take_while(|l| *l != "---") {
        // Tabs are no YAML, and a bare "no" would be a boolean where Norwegian is meant.
        let line = line.replace('\t', "  ");
        let marks = line.find(|c| !" -?:".contains(c)).unwrap_or(line.len());
        anyhow::ensure!(marks <= MAX_INDENT, "a line is indented too far");
        yaml += match line.trim_end() {
            l if l.ends_with("- no") => &line[..l.len() - 2],
            _ => &line,
        };
        if line.trim_end().ends_with("- no") {
            yaml += "\"no\"";
        }
        yaml.push('\n');
        anyhow::ensure!(yaml.len() <= MAX_FRONT_MATTER, "it is too long");
    }
    // Aliases are copied where they are used; a few lines of them could fill the memory.
    let mut aliases = Aliases(false);
    Parser::new(yaml.chars()).load(&mut aliases, true)?;
    anyhow::ensure!(!aliases.0, "it uses aliases");
    let documents = YamlLoader::load_from_str(&yaml)?;
    match documents.first().map(to_json) {
        None | Some(Json::Null) => Ok(Map::new()),
        Some(Json::Object(map)) => Ok(map),
        Some(_) => anyhow::bail!("it is not a mapping"),
    }
}

struct Aliases(bool);

impl EventReceiver for Aliases {
    fn on_event(&mut self, event: Event) {
        self.0 |= matches!(event, Event::Alias(_));
    }
}

fn to_json(yaml: &Yaml) -> Json {
    match yaml {
        Yaml::String(s) | Yaml::Real(s) => Json::String(s.clone()),
        Yaml::Integer(i) => Json::from(*i),
        Yaml::Boolean(b) => Json::from(*b),
        Yaml::Array(list) => Json::Array(list.iter().map(to_json).collect()),
        Yaml::Hash(map) => Json::Object(
            map.iter()
                .filter_map(|(k, v)| Some((as_text(&to_json(k))?, to_json(v))))
                .collect(),
        ),
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, total: u64) -> [Option<String>; 5] {
        let p = NameParts::parse(id, total);
        [
            p.organization,
            p.basename,
            p.finetune,
            p.version,
            p.size_label,
        ]
    }

    fn some(s: &str) -> Option<String> {
        Some(s.to_owned())
    }

    #[test]
    fn names_are_taken_apart() {
        // Examples of gguf-py's own tests.
        assert_eq!(
            parts("Mistral/Mixtral-8x7B-Instruct-v0.1", 0),
            [
                some("Mistral"),
                some("Mixtral"),
                some("Instruct"),
                some("v0.1"),
                some("8x7B")
            ]
        );
        assert_eq!(parts("Mixtral", 0), [None, None, None, None, None]);
        assert_eq!(
            parts("Qwen/Qwen1.5-MoE-A2.7B-Chat", 0),
            [
                some("Qwen"),
                some("Qwen1.5-MoE"),
                some("Chat"),
                None,
                some("A2.7B")
            ]
        );
        assert_eq!(
            parts("bigscience/bloom-7b1-petals", 7_000_000_000),
            [
                some("bigscience"),
                some("bloom"),
                some("petals"),
                None,
                some("7.1B")
            ]
        );
        assert_eq!(
            parts("crestf411/daybreak-kunoichi-2dpo-7b", 7_000_000_000),
            [
                some("crestf411"),
                some("daybreak-kunoichi"),
                some("2dpo"),
                None,
                some("7B")
            ]
        );
        // A context length is no size.
        assert_eq!(
            parts("microsoft/Phi-3-mini-4k-instruct", 4_000_000_000),
            [
                some("microsoft"),
                some("Phi-3"),
                some("4k-instruct"),
                None,
                some("mini")
            ]
        );
    }

    #[test]
    fn titles_follow_the_words() {
        assert_eq!(title("deepseek_v2"), "Deepseek_V2");
        assert_eq!(
            title("Mixtral-8x7B-Instruct-v0.1"),
            "Mixtral 8x7B Instruct v0.1"
        );
        assert_eq!(title("open-orca"), "Open Orca");
    }

    #[test]
    fn size_labels_have_two_digits() {
        let of = |shared, expert, n_expert| {
            ParameterCount {
                total: shared + expert * n_expert,
                shared,
                expert,
                n_expert,
            }
            .label()
        };
        assert_eq!(of(1_600_000_000, 5_640_000_000, 8), "8x7.2B");
        assert_eq!(of(110_000, 18_432, 4), "4x128K");
        assert_eq!(of(345_600_000, 0, 0), "346M");
        assert_eq!(of(900, 0, 0), "0.9K");
        assert_eq!(of(9_960_000, 0, 0), "10M");
    }

    #[test]
    fn front_matter_is_read_and_bounded() {
        let card = parse_front_matter(
            "---\nlicense: apache-2.0\nlanguage:\n- en\n- no\nbase_model: [a/b, c/d]\n---\ntext",
        )
        .unwrap();
        assert_eq!(card["license"], "apache-2.0");
        assert_eq!(card["language"], serde_json::json!(["en", "no"]));
        assert_eq!(card["base_model"], serde_json::json!(["a/b", "c/d"]));
        assert!(parse_front_matter("no front matter").unwrap().is_empty());
        for bad in [
            "---\na: &x [1]\nb: *x\n---",
            "---\n- list\n---",
            &format!("---\n{}1\n---", "- ".repeat(500)),
            &format!("---\na: {}\n---", "[".repeat(100_000)),
            "---\na: b: c\n---",
        ] {
            assert!(parse_front_matter(bad).is_err(), "{}", &bad[..20]);
        }
    }

    #[test]
    fn a_card_becomes_keys() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("Tiny-8x1B-Chat-v2");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(
            dir.join("README.md"),
            "---\nlicense: [mit, apache-2.0]\nlicense_link: LICENSE\nbase_model: mistralai/Mixtral-8x7B-v0.1\n\
             datasets:\n- https://huggingface.co/datasets/x/y\ntags: [moe]\npipeline_tag: text-generation\nlanguage: en\n---\n",
        )
        .unwrap();
        std::fs::write(
            dir.join("generation_config.json"),
            r#"{"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}"#,
        )
        .unwrap();
        let mut m = Metadata::new();
        let mut notes = Vec::new();
        let count = ParameterCount {
            total: 8_000_000_000,
            ..Default::default()
        };
        describe(&dir, &serde_json::json!({}), count, &mut m, &mut notes).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        for (key, value) in [
            ("general.name", "Tiny 8x1B Chat v2"),
            ("general.version", "v2"),
            ("general.finetune", "Chat"),
            ("general.basename", "Tiny"),
            ("general.size_label", "8x1B"),
            ("general.license", "mit,apache-2.0"),
            ("general.license.link", "LICENSE"),
            ("general.base_model.0.name", "Mixtral 8x7B v0.1"),
            ("general.base_model.0.organization", "Mistralai"),
            (
                "general.base_model.0.repo_url",
                "https://huggingface.co/mistralai/Mixtral-8x7B-v0.1",
            ),
            (
                "general.dataset.0.repo_url",
                "https://huggingface.co/datasets/x/y",
            ),
        ] {
            assert_eq!(m.get_str(key), Some(value), "{key}");
        }
        assert_eq!(m.get("general.base_model.count"), Some(&Value::U32(1)));
        assert_eq!(m.get("general.sampling.temp"), Some(&Value::F32(0.6)));
        assert_eq!(m.get("general.sampling.top_k"), Some(&Value::I32(20)));
        assert_eq!(
            m.get("general.sampling.penalty_repeat"),
            Some(&Value::F32(1.05))
        );
        let tags = m
            .get_array("general.tags")
            .and_then(Array::as_strings)
            .unwrap();
        assert_eq!(
            tags.iter().collect::<Vec<_>>(),
            [b"moe".as_slice(), b"text-generation"]
        );
    }
}
