//! llama-perplexity's `--multiple-choice` file, all numbers little-endian and 32 bits:
//! the number of tasks; for each the position in the file; then the tasks. A task is a question, the answers
//! of which one is right, and the answers of which several are (which llama-perplexity does not use).
//! A string is its length and its bytes; answers are their number, the strings, and a label each, 1 for right.

use anyhow::{Context, Result, bail, ensure};

use super::super::{MAX_CHOICES, Task};

/// A question of one byte, two answers of one byte with labels, no further answers.
const SMALLEST_TASK: usize = 5 + 4 + 2 * 5 + 2 * 4 + 4;

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        ensure!(
            n <= left,
            "byte {}: {what} takes {n} bytes and {left} are left; the file is cut or damaged",
            self.at
        );
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u32(what)? as usize;
        let start = self.at;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => bail!("byte {}: {what} is not UTF-8", start + e.valid_up_to()),
        }
    }

    fn answers(&mut self) -> Result<(Vec<String>, Vec<u32>)> {
        let start = self.at;
        let n = self.u32("the number of answers")? as usize;
        ensure!(
            n <= MAX_CHOICES,
            "byte {start}: {n} answers; at most {MAX_CHOICES} are expected"
        );
        let answers = (0..n)
            .map(|_| self.string("an answer"))
            .collect::<Result<_>>()?;
        let labels = (0..n).map(|_| self.u32("a label")).collect::<Result<_>>()?;
        Ok((answers, labels))
    }

    fn task(&mut self) -> Result<Task> {
        let context = self.string("the question")?;
        let start = self.at;
        let (choices, labels) = self.answers()?;
        let mut right = labels.iter().enumerate().filter(|(_, l)| **l == 1);
        let gold = match (right.next(), right.next()) {
            (Some((gold, _)), None) => gold,
            (None, _) => bail!("byte {start}: none of the answers is marked right"),
            (Some(_), Some(_)) => {
                bail!("byte {start}: several answers are marked right; one is expected")
            }
        };
        self.answers()?;
        let task = Task {
            context,
            choices,
            gold,
        };
        match task.fault() {
            None => Ok(task),
            Some(fault) => bail!("byte {start}: the task cannot be scored: {fault}"),
        }
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Task>> {
    let mut cursor = Cursor { bytes, at: 0 };
    let n = cursor.u32("the number of tasks")? as usize;
    // A position and a task each: what the count claims must be there before anything is allocated.
    ensure!(
        n <= (bytes.len() - 4) / (4 + SMALLEST_TASK),
        "byte 0: the file claims {n} tasks and is too small for them; it is cut, damaged, or not a file of \
         llama-perplexity --multiple-choice"
    );
    cursor.take(4 * n, "the table of positions")?;
    let mut tasks = Vec::with_capacity(n);
    for i in 0..n {
        let start = cursor.at;
        let task = cursor
            .task()
            .with_context(|| format!("task {i} at byte {start}"))?;
        tasks.push(task);
    }
    ensure!(
        cursor.at == bytes.len(),
        "byte {}: {} bytes follow the last of {n} tasks; the file is damaged",
        cursor.at,
        bytes.len() - cursor.at
    );
    Ok(tasks)
}

pub(super) fn serialize(tasks: &[Task]) -> Result<Vec<u8>> {
    fn number(out: &mut Vec<u8>, n: usize) -> Result<()> {
        let n = u32::try_from(n).context("the form holds no more than 4 GiB")?;
        out.extend_from_slice(&n.to_le_bytes());
        Ok(())
    }
    fn string(out: &mut Vec<u8>, text: &str) -> Result<()> {
        number(out, text.len())?;
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
    let start = 4 + 4 * tasks.len();
    let mut table = Vec::with_capacity(start);
    let mut body = Vec::new();
    number(&mut table, tasks.len())?;
    for task in tasks {
        number(&mut table, start + body.len())?;
        string(&mut body, &task.context)?;
        number(&mut body, task.choices.len())?;
        for choice in &task.choices {
            string(&mut body, choice)?;
        }
        for i in 0..task.choices.len() {
            number(&mut body, usize::from(i == task.gold))?;
        }
        // No answers of which several are right.
        number(&mut body, 0)?;
    }
    table.append(&mut body);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::super::tests::task;
    use super::*;

    fn sample() -> Vec<u8> {
        serialize(&[task("Qu", &["a", "bc"], 1)]).unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_form() {
        let expected = [
            &[1, 0, 0, 0, 8, 0, 0, 0][..],
            &[2, 0, 0, 0, b'Q', b'u'],
            &[2, 0, 0, 0, 1, 0, 0, 0, b'a', 2, 0, 0, 0, b'b', b'c'],
            &[0, 0, 0, 0, 1, 0, 0, 0],
            &[0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(sample(), expected);
    }

    #[test]
    fn answers_with_several_right_ones_are_passed_over() {
        let mut bytes = sample();
        let end = bytes.len() - 4;
        bytes.truncate(end);
        bytes.extend([1, 0, 0, 0, 1, 0, 0, 0, b'z', 1, 0, 0, 0]);
        assert_eq!(parse(&bytes).unwrap(), [task("Qu", &["a", "bc"], 1)]);
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let fails = |change: &dyn Fn(&mut Vec<u8>), message: &str| {
            let mut bytes = sample();
            change(&mut bytes);
            let e = format!("{:#}", parse(&bytes).unwrap_err());
            assert!(e.contains(message), "{e}");
        };
        fails(&|b| b.truncate(3), "byte 0: the number of tasks takes 4");
        fails(
            &|b| b[..4].copy_from_slice(&u32::MAX.to_le_bytes()),
            "byte 0: the file claims 4294967295 tasks",
        );
        fails(
            &|b| b[8..12].copy_from_slice(&u32::MAX.to_le_bytes()),
            "task 0 at byte 8: byte 12: the question takes 4294967295 bytes",
        );
        fails(
            &|b| b[14] = 101,
            "byte 14: 101 answers; at most 100 are expected",
        );
        fails(&|b| b[22] = 0xff, "byte 22: an answer is not UTF-8");
        fails(&|b| b[33] = 0, "none of the answers is marked right");
        fails(&|b| b[29] = 1, "several answers are marked right");
        fails(&|b| b.push(0), "1 bytes follow the last of 1 tasks");
        fails(
            &|b| b.truncate(b.len() - 1),
            "the number of answers takes 4 bytes and 3 are left",
        );
    }
}
