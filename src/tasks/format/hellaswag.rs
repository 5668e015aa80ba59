//! llama-perplexity's `--hellaswag` text: six lines a task, the context, the index of the right ending and
//! four endings.

use anyhow::{Result, bail, ensure};

use super::super::Task;

const ENDINGS: usize = 4;
const LINES: usize = 2 + ENDINGS;

pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Task>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => bail!(
            "byte {}: neither JSON lines, nor a file of llama-perplexity --multiple-choice, nor UTF-8 text",
            e.valid_up_to()
        ),
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut tasks = Vec::with_capacity(lines.len() / LINES);
    for (i, task) in lines.chunks(LINES).enumerate() {
        let first = i * LINES + 1;
        let [context, gold, endings @ ..] = task else {
            bail!("line {first}: {}", short(task.len()));
        };
        let Ok(gold) = gold.trim().parse::<usize>() else {
            bail!(
                "line {}: '{}' is not the index of the right ending; the file is neither JSON lines nor \
                 HellaSwag's six lines a task",
                first + 1,
                gold.chars().take(40).collect::<String>()
            );
        };
        ensure!(
            endings.len() == ENDINGS,
            "line {first}: {}",
            short(task.len())
        );
        let task = Task {
            context: (*context).to_owned(),
            choices: endings.iter().map(|e| (*e).to_owned()).collect(),
            gold,
        };
        if let Some(fault) = task.fault() {
            bail!("line {first}: the task cannot be scored: {fault}");
        }
        tasks.push(task);
    }
    Ok(tasks)
}

fn short(lines: usize) -> String {
    format!("the last task has {lines} of {LINES} lines; the file is cut, or not HellaSwag's form")
}

#[cfg(test)]
mod tests {
    use super::super::tests::task;
    use super::*;

    #[test]
    fn six_lines_make_a_task() {
        let text = "Cooking: He cuts\n2\nand runs.\nand sings.\nthe onion.\nout.\nShe\r\n0\r\na\r\nb\r\nc\r\nd";
        assert_eq!(
            parse(text.as_bytes()).unwrap(),
            [
                task(
                    "Cooking: He cuts",
                    &["and runs.", "and sings.", "the onion.", "out."],
                    2
                ),
                task("She", &["a", "b", "c", "d"], 0),
            ]
        );
    }

    #[test]
    fn damage_is_named_with_its_line() {
        for (text, message) in [
            (
                "ctx\n0\na\nb\nc\nd\nctx\n0\na\n",
                "line 7: the last task has 3",
            ),
            ("ctx\n0\na\nb\nc\nd\nctx", "line 7: the last task has 1"),
            (
                "ctx\n4\na\nb\nc\nd\n",
                "line 1: the task cannot be scored: its right choice is number 4 of 4",
            ),
            ("ctx\n-1\na\nb\nc\nd\n", "line 2: '-1' is not the index"),
            (
                "ctx\n0\na\n\nc\nd\n",
                "line 1: the task cannot be scored: choice 1 is empty",
            ),
            ("\n0\na\nb\nc\nd\n", "context is empty"),
            (
                "Some prose.\nMore prose.\n",
                "line 2: 'More prose.' is not the index",
            ),
        ] {
            let e = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(e.contains(message), "{e}");
        }
        let e = parse(b"ctx\n\xff").unwrap_err().to_string();
        assert!(e.contains("byte 4"), "{e}");
    }
}
