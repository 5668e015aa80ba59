//! Cutting tasks out of a text: which of several pieces of a document continues this one?

use std::fmt;
use std::ops::Range;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::rng::Rng;
use super::{MAX_CHOICES, Task};

/// How tasks are cut.
#[derive(Clone, Debug)]
pub struct MakeOptions {
    /// Tasks at most; all that the text gives when absent.
    pub count: Option<usize>,
    /// Choices of a task, the right one included.
    pub choices: usize,
    /// Words of a context.
    pub context_words: usize,
    /// Words of each choice.
    pub continuation_words: usize,
    /// Another seed chooses other places and distractors.
    pub seed: u64,
}

impl Default for MakeOptions {
    fn default() -> Self {
        Self {
            count: None,
            choices: 4,
            context_words: 40,
            continuation_words: 10,
            seed: 0,
        }
    }
}

/// Tasks, and what the text had to give.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Made {
    /// The tasks, in random order.
    #[serde(skip)]
    pub tasks: Vec<Task>,
    /// Number of tasks.
    pub n_tasks: usize,
    /// Places for a task in the text; places do not overlap, so that tasks are independent.
    pub n_places: usize,
    /// Places passed over because their document has not enough different pieces.
    pub n_without_distractors: usize,
    /// Documents that gave a task, and all documents.
    pub documents: [usize; 2],
    /// How often each position is the right one.
    pub gold_positions: Vec<usize>,
}

/// Tries at finding one distractor.
const ATTEMPTS: usize = 1000;
/// Pieces with longer words, in characters, are not used: no words but encoded data, or a script without spaces.
const MAX_WORD: usize = 32;

/// Cuts tasks out of documents. The context is `context_words` words, the right choice the words that follow,
/// the others as many words from elsewhere in the same document: they overlap neither the task's own place nor
/// each other, and no two choices read the same. Text is kept as it is; pieces begin after a single space,
/// because a task's context and choice are joined by one. Words are what white space separates; text in scripts
/// that do not separate words gives no tasks. Tasks do not overlap each other. The right choice
/// is at each position equally often, also among the first tasks of the result.
///
/// # Errors
/// The options make no task, or the text is too short for one.
pub fn make(documents: &[String], options: &MakeOptions) -> Result<Made> {
    ensure!(
        (2..=MAX_CHOICES).contains(&options.choices),
        "a task of {} choices; 2 to {MAX_CHOICES} are possible",
        options.choices
    );
    ensure!(
        options.context_words > 0 && options.continuation_words > 0,
        "context and continuation need at least one word each"
    );
    let documents: Vec<Document<'_>> = documents.iter().map(|d| Document::new(d)).collect();
    let mut places: Vec<(usize, usize)> = documents
        .iter()
        .enumerate()
        .flat_map(|(i, d)| d.places(options).into_iter().map(move |w| (i, w)))
        .collect();
    Rng::new(&[options.seed]).shuffle(&mut places);

    let n_places = places.len();
    let count = options.count.unwrap_or(usize::MAX);
    let mut positions = Positions::new(options);
    let mut tasks = Vec::new();
    let mut gave = vec![false; documents.len()];
    let mut n_without_distractors = 0;
    for (d, word) in places {
        if tasks.len() >= count {
            break;
        }
        // A stream for each place: what others need does not change it.
        let mut rng = Rng::new(&[options.seed, d as u64, word as u64]);
        match documents[d].task_at(word, options, &mut rng) {
            Some(pieces) => {
                gave[d] = true;
                tasks.push(pieces.at_position(positions.next()));
            }
            None => n_without_distractors += 1,
        }
    }
    ensure!(
        !tasks.is_empty(),
        "the text gives no task: a document needs at least {} words, separated by spaces, that do not repeat; \
         give more text or ask for fewer words",
        options.context_words + options.choices * options.continuation_words
    );
    let mut gold_positions = vec![0; options.choices];
    for task in &tasks {
        gold_positions[task.gold] += 1;
    }
    Ok(Made {
        n_tasks: tasks.len(),
        n_places,
        n_without_distractors,
        documents: [gave.iter().filter(|g| **g).count(), documents.len()],
        gold_positions,
        tasks,
    })
}

/// A document and where its words are.
struct Document<'t> {
    text: &'t str,
    words: Vec<Range<usize>>,
    /// Indices of words that are too long, in order.
    too_long: Vec<usize>,
}

struct Pieces {
    context: String,
    right: String,
    distractors: Vec<String>,
}

impl Pieces {
    fn at_position(self, gold: usize) -> Task {
        let mut choices = self.distractors;
        choices.insert(gold, self.right);
        Task {
            context: self.context,
            choices,
            gold,
        }
    }
}

impl<'t> Document<'t> {
    fn new(text: &'t str) -> Self {
        let start = text.as_ptr() as usize;
        let words: Vec<Range<usize>> = text
            .split_whitespace()
            .map(|w| {
                let at = w.as_ptr() as usize - start;
                at..at + w.len()
            })
            .collect();
        let too_long = (0..words.len())
            .filter(|&i| text[words[i].clone()].chars().nth(MAX_WORD).is_some())
            .collect();
        Self {
            text,
            words,
            too_long,
        }
    }

    /// The last of the words that is too long.
    fn last_too_long(&self, words: &Range<usize>) -> Option<usize> {
        let before_end = self.too_long.partition_point(|&i| i < words.end);
        let last = *self.too_long.get(before_end.checked_sub(1)?)?;
        words.contains(&last).then_some(last)
    }

    /// Whether exactly one space precedes a word.
    fn after_space(&self, word: usize) -> bool {
        word > 0 && &self.text[self.words[word - 1].end..self.words[word].start] == " "
    }

    fn piece(&self, words: Range<usize>) -> &'t str {
        &self.text[self.words[words.start].start..self.words[words.end - 1].end]
    }

    /// First words of the places for tasks.
    fn places(&self, options: &MakeOptions) -> Vec<usize> {
        let length = options
            .context_words
            .saturating_add(options.continuation_words);
        let mut places = Vec::new();
        let mut word = 0usize;
        while word.saturating_add(length) <= self.words.len() {
            if let Some(long) = self.last_too_long(&(word..word + length)) {
                word = long + 1;
            } else if self.after_space(word + options.context_words) {
                places.push(word);
                word += length;
            } else {
                word += 1;
            }
        }
        places
    }

    fn task_at(&self, word: usize, options: &MakeOptions, rng: &mut Rng) -> Option<Pieces> {
        let length = options.continuation_words;
        let boundary = word + options.context_words;
        let own = word..boundary + length;
        let right = self.piece(boundary..own.end);
        let mut taken: Vec<Range<usize>> = vec![own];
        let mut seen: Vec<String> = vec![reading(right)];
        let mut distractors = Vec::new();
        while distractors.len() + 1 < options.choices {
            let found = (0..ATTEMPTS).find_map(|_| {
                let start = rng.below(self.words.len() - length + 1);
                let words = start..start + length;
                let free = |t: &Range<usize>| t.end <= words.start || words.end <= t.start;
                let usable = self.after_space(start) && self.last_too_long(&words).is_none();
                if !usable || !taken.iter().all(free) {
                    return None;
                }
                let piece = self.piece(words.clone());
                let as_read = reading(piece);
                (!seen.contains(&as_read)).then_some((words, piece, as_read))
            });
            let (words, piece, as_read) = found?;
            taken.push(words);
            seen.push(as_read);
            distractors.push(piece.to_owned());
        }
        Some(Pieces {
            context: self.piece(word..boundary).to_owned(),
            right: right.to_owned(),
            distractors,
        })
    }
}

/// A piece as a reader takes it, without regard to white space and case.
fn reading(piece: &str) -> String {
    piece
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

/// Positions of the right choice: random orders of all positions, one after another.
struct Positions {
    rng: Rng,
    order: Vec<usize>,
    at: usize,
}

impl Positions {
    fn new(options: &MakeOptions) -> Self {
        Self {
            rng: Rng::new(&[options.seed, u64::MAX]),
            order: (0..options.choices).collect(),
            at: options.choices,
        }
    }

    fn next(&mut self) -> usize {
        if self.at == self.order.len() {
            self.rng.shuffle(&mut self.order);
            self.at = 0;
        }
        self.at += 1;
        self.order[self.at - 1]
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gave, all] = self.documents;
        writeln!(
            f,
            "{} tasks of {} choices from {gave} of {all} documents; the text has {} places for tasks",
            self.n_tasks,
            self.gold_positions.len(),
            self.n_places
        )?;
        if self.n_without_distractors > 0 {
            writeln!(
                f,
                "{} places passed over: their documents have not enough different pieces",
                self.n_without_distractors
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that occur once each, some lines broken.
    fn numbered(words: usize) -> String {
        (0..words)
            .map(|i| format!("w{i}{}", if i % 7 == 6 { "\n" } else { " " }))
            .collect()
    }

    fn numbers(piece: &str) -> Vec<usize> {
        piece
            .split_whitespace()
            .map(|w| w[1..].parse().unwrap())
            .collect()
    }

    fn options(count: Option<usize>) -> MakeOptions {
        MakeOptions {
            count,
            choices: 4,
            context_words: 12,
            continuation_words: 5,
            seed: 3,
        }
    }

    #[test]
    fn tasks_keep_what_they_promise() {
        let documents = [numbered(500), "too short".to_owned(), numbered(200)];
        let made = make(&documents, &options(None)).unwrap();
        assert_eq!(made.n_tasks, made.tasks.len());
        assert_eq!(made.documents, [2, 3]);
        assert!((30..=41).contains(&made.n_tasks), "{}", made.n_tasks);
        let mut contexts = Vec::new();
        for task in &made.tasks {
            assert!(task.fault().is_none());
            let context = numbers(&task.context);
            let right = numbers(&task.choices[task.gold]);
            assert_eq!(context.len(), 12);
            // Context, space and right choice stand so in a document.
            let whole = format!("{} {}", task.context, task.choices[task.gold]);
            assert!(documents.iter().any(|d| d.contains(&whole)), "{whole}");
            let mut used: Vec<usize> = context.clone();
            for choice in &task.choices {
                let words = numbers(choice);
                assert_eq!(words.len(), 5);
                assert!(words.windows(2).all(|w| w[1] == w[0] + 1), "{choice}");
                used.extend(words);
            }
            assert_eq!(right[0], context[11] + 1);
            let n = used.len();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), n, "pieces overlap: {task:?}");
            contexts.push(whole);
        }
        contexts.sort();
        contexts.dedup();
        assert_eq!(contexts.len(), made.n_tasks);
    }

    #[test]
    fn words_that_are_none_are_left_out() {
        let mut text = numbered(300);
        for at in [100, 110, 200] {
            let word = format!("w{at} ");
            text = text.replace(&word, &format!("w{at}{} ", "0".repeat(MAX_WORD)));
        }
        let document = Document::new(&text);
        assert_eq!(document.too_long, [100, 110, 200]);
        assert_eq!(document.last_too_long(&(0..100)), None);
        assert_eq!(document.last_too_long(&(0..111)), Some(110));
        assert_eq!(document.last_too_long(&(111..200)), None);
        let made = make(&[text], &options(None)).unwrap();
        assert!(made.n_tasks >= 12, "{}", made.n_tasks);
        for task in &made.tasks {
            let pieces = task.choices.iter().chain([&task.context]);
            let longest = pieces
                .flat_map(|p| p.split_whitespace())
                .map(str::len)
                .max();
            assert!(longest.unwrap() <= 4);
        }
    }

    #[test]
    fn places_do_not_overlap() {
        let text = numbered(1000);
        let document = Document::new(&text);
        let places = document.places(&options(None));
        assert!(places.windows(2).all(|p| p[1] >= p[0] + 17));
        assert!(places.iter().all(|w| document.after_space(w + 12)));
    }

    #[test]
    fn right_positions_are_balanced_and_seeds_matter() {
        let documents = [numbered(3000)];
        let all = make(&documents, &options(None)).unwrap();
        let (min, max) = (
            all.gold_positions.iter().min().unwrap(),
            all.gold_positions.iter().max().unwrap(),
        );
        assert!(max - min <= 1, "{:?}", all.gold_positions);
        assert_eq!(all, make(&documents, &options(None)).unwrap());
        // Fewer tasks are the first of more.
        let few = make(&documents, &options(Some(21))).unwrap();
        assert_eq!(few.tasks, all.tasks[..21]);
        assert_eq!(few.n_places, all.n_places);
        assert!(few.gold_positions.iter().all(|n| (5..=6).contains(n)));
        let other = MakeOptions {
            seed: 4,
            ..options(None)
        };
        assert_ne!(all.tasks, make(&documents, &other).unwrap().tasks);
        // The order of positions is not a fixed cycle.
        let golds: Vec<usize> = all.tasks.iter().map(|t| t.gold).collect();
        assert!((4..golds.len()).any(|i| golds[i] != golds[i - 4]));
    }

    #[test]
    fn texts_without_tasks_say_so() {
        for text in [
            "",
            "a few words",
            &"same ".repeat(2000),
            &"nospaces".repeat(1000),
        ] {
            let e = make(&[text.to_owned()], &options(None)).unwrap_err();
            assert!(e.to_string().contains("gives no task"), "{e}");
        }
        let huge = MakeOptions {
            context_words: usize::MAX,
            ..options(None)
        };
        assert!(make(&[numbered(100)], &huge).is_err());
        for choices in [0, 1, 101] {
            let bad = MakeOptions {
                choices,
                ..options(None)
            };
            assert!(make(&[numbered(3000)], &bad).is_err());
        }
        // Some places work and some do not.
        let mixed = [numbered(300), "same ".repeat(300)];
        let made = make(&mixed, &options(None)).unwrap();
        assert!(made.n_without_distractors >= 17);
        assert_eq!(made.n_places, made.n_tasks + made.n_without_distractors);
    }
}
