//! Tasks as JSON objects, one a line.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::super::Task;

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";
/// Longer lines are refused: parsed JSON takes many times the room of its text.
const MAX_LINE: usize = 4 << 20;

pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Task>> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let mut tasks = Vec::new();
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let task = line_task(line).with_context(|| format!("line {}", i + 1))?;
        tasks.push(task);
    }
    Ok(tasks)
}

fn line_task(line: &[u8]) -> Result<Task> {
    ensure!(
        line.len() <= MAX_LINE,
        "{} long; at most {} are read",
        crate::units::bytes(line.len() as u64),
        crate::units::bytes(MAX_LINE as u64)
    );
    let object: Map<String, Value> = serde_json::from_slice(line).map_err(|e| {
        // serde_json counts lines of what it was given, which is always the first here.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        anyhow!("column {}: not a JSON object: {message}", e.column())
    })?;
    let context = match first(&object, &["query", "context", "ctx", "question"])? {
        (_, Value::String(text)) => text.clone(),
        (key, other) => bail!("\"{key}\" is {}, not a text", kind(other)),
    };
    let (choices, labels) = choices(&object)?;
    let gold = gold(&object, choices.len(), labels.as_deref())?;
    let task = Task {
        context,
        choices,
        gold,
    };
    match task.fault() {
        None => Ok(task),
        Some(fault) => bail!("the task cannot be scored: {fault}"),
    }
}

/// The value of the first of `keys` that the object has.
fn first<'o, 'k>(object: &'o Map<String, Value>, keys: &[&'k str]) -> Result<(&'k str, &'o Value)> {
    keys.iter()
        .find_map(|k| object.get(*k).map(|v| (*k, v)))
        .with_context(|| format!("none of the keys {} is there", keys.join(", ")))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The continuations and, where they come with them, their labels.
fn choices(object: &Map<String, Value>) -> Result<(Vec<String>, Option<Vec<String>>)> {
    let (key, value) = first(object, &["choices", "endings"])?;
    match value {
        Value::Array(_) => Ok((texts(key, value)?, None)),
        // As ARC has them.
        Value::Object(inner) => {
            let choices = texts("text", inner.get("text").unwrap_or(&Value::Null))?;
            let labels = match inner.get("label") {
                Some(labels) => Some(texts("label", labels)?),
                None => None,
            };
            if let Some(labels) = &labels {
                ensure!(
                    labels.len() == choices.len(),
                    "{} choices have {} labels",
                    choices.len(),
                    labels.len()
                );
            }
            Ok((choices, labels))
        }
        other => bail!("\"{key}\" is {}, not a list of texts", kind(other)),
    }
}

fn texts(key: &str, value: &Value) -> Result<Vec<String>> {
    let Value::Array(items) = value else {
        bail!("\"{key}\" is {}, not a list of texts", kind(value));
    };
    items
        .iter()
        .enumerate()
        .map(|(i, item)| match item {
            Value::String(text) => Ok(text.clone()),
            other => bail!("item {i} of \"{key}\" is {}, not a text", kind(other)),
        })
        .collect()
}

/// Index of the right choice.
fn gold(object: &Map<String, Value>, n: usize, labels: Option<&[String]>) -> Result<usize> {
    let (key, value) = first(object, &["gold", "label", "answer", "answerKey"])?;
    let index = match value {
        Value::Number(number) => number
            .as_u64()
            .and_then(|i| usize::try_from(i).ok())
            .filter(|i| *i < n),
        Value::String(text) => match labels {
            Some(labels) => labels.iter().position(|l| l == text),
            None => letter_or_index(text.trim()).filter(|i| *i < n),
        },
        other => bail!(
            "\"{key}\" is {}, neither an index nor a letter",
            kind(other)
        ),
    };
    let shown: String = value.to_string().chars().take(40).collect();
    index.with_context(|| format!("\"{key}\" is {shown}, which names none of the {n} choices"))
}

/// `B` and `b` are 1, and so is `1`.
fn letter_or_index(text: &str) -> Option<usize> {
    match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            Some((letter.to_ascii_uppercase() - b'A').into())
        }
        _ => text.parse().ok(),
    }
}

pub(super) fn serialize(tasks: &[Task]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for task in tasks {
        serde_json::to_writer(&mut out, task)?;
        out.push(b'\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::tests::task;
    use super::*;

    #[test]
    fn the_harness_s_documents_are_read() {
        let expected = [task("Q", &["x", "y", "z"], 1)];
        for line in [
            r#"{"query":"Q","choices":["x","y","z"],"gold":1}"#,
            r#"{"ctx":"Q","endings":["x","y","z"],"label":"1","ind":4}"#,
            r#"{"question":"Q","choices":["x","y","z"],"answer":"B"}"#,
            r#"{"question":"Q","choices":["x","y","z"],"answer":" b "}"#,
            r#"{"question":"Q","choices":{"text":["x","y","z"],"label":["A","B","C"]},"answerKey":"B"}"#,
            r#"{"question":"Q","choices":{"text":["x","y","z"],"label":["1","2","3"]},"answerKey":"2"}"#,
            r#"{"question":"other","query":"Q","label":"1","answer":"C","choices":["x","y","z"]}"#,
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap(), expected, "{line}");
            let surrounded = format!("\u{feff}\n{line}\r\n\n");
            assert_eq!(parse(surrounded.as_bytes()).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let good = r#"{"query":"Q","choices":["x","y"],"gold":1}"#;
        let deep = "[".repeat(100_000);
        let long = format!(r#"{{"query":"{}"}}"#, "x".repeat(MAX_LINE));
        for (line, message) in [
            (r#"{"query":"Q","#, "column"),
            ("[1]", "not a JSON object"),
            (deep.as_str(), "not a JSON object"),
            (long.as_str(), "at most 4.00 MiB"),
            (
                r#"{"choices":["x","y"],"gold":1}"#,
                "none of the keys query",
            ),
            (
                r#"{"query":1,"choices":["x","y"],"gold":1}"#,
                "\"query\" is a number",
            ),
            (
                r#"{"query":"Q","gold":1}"#,
                "none of the keys choices, endings",
            ),
            (
                r#"{"query":"Q","choices":"xy","gold":1}"#,
                "\"choices\" is a text",
            ),
            (
                r#"{"query":"Q","choices":["x",null],"gold":1}"#,
                "item 1 of \"choices\" is null",
            ),
            (
                r#"{"query":"Q","choices":["x","y"]}"#,
                "none of the keys gold",
            ),
            (
                r#"{"query":"Q","choices":["x","y"],"gold":2}"#,
                "\"gold\" is 2, which names none of the 2",
            ),
            (
                r#"{"query":"Q","choices":["x","y"],"gold":-1}"#,
                "names none",
            ),
            (
                r#"{"query":"Q","choices":["x","y"],"gold":0.5}"#,
                "names none",
            ),
            (
                r#"{"query":"Q","choices":["x","y"],"gold":"Z"}"#,
                "names none",
            ),
            (
                r#"{"query":"Q","choices":["x","y"],"gold":[1]}"#,
                "is a list",
            ),
            (
                r#"{"query":"Q","choices":["x"],"gold":0}"#,
                "it has 1 choices",
            ),
            (
                r#"{"query":"","choices":["x","y"],"gold":0}"#,
                "context is empty",
            ),
            (
                r#"{"query":"Q","choices":{"text":["x","y"],"label":["A"]},"gold":"A"}"#,
                "2 choices have 1 labels",
            ),
        ] {
            let text = format!("{good}\n{line}\n");
            let e = format!("{:#}", parse(text.as_bytes()).unwrap_err());
            assert!(e.starts_with("line 2"), "{e}");
            assert!(e.contains(message), "{e}");
        }
        let e = format!("{:#}", parse(b"{\"query\":\"\xff\"}").unwrap_err());
        assert!(e.contains("line 1"), "{e}");
    }
}
