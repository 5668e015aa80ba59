//! Progress of long work: bars with an estimate on a terminal, plain lines elsewhere, nothing when quiet.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes. Everything is printed on standard error, so that `--json` on standard output stays
/// clean.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Quiet,
    Lines,
    Bars,
}

impl Progress {
    /// Bars when standard error is a terminal, lines otherwise; nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        Self { mode }
    }

    /// Prints nothing.
    pub fn quiet() -> Self {
        Self { mode: Mode::Quiet }
    }

    /// Prints a line, unless quiet.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.mode != Mode::Quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A piece of work of `total` units.
    pub fn bar(&self, what: &str, total: u64, unit: &'static str) -> Bar {
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if self.mode == Mode::Bars {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let counts = if unit == "bytes" {
            "{bytes}/{total_bytes} {bytes_per_sec}"
        } else {
            "{pos}/{len} {unit}"
        };
        let style = ProgressStyle::with_template(&format!(
            "{{msg:20}} {{wide_bar}} {} {{percent:>3}}% ETA {{eta}}",
            counts.replace("{unit}", unit)
        ))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_message(what.to_owned());
        if self.mode == Mode::Bars {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Bar {
            bar,
            lines: (self.mode == Mode::Lines).then(|| Mutex::new(Instant::now())),
            what: what.to_owned(),
            unit,
            quiet: self.mode == Mode::Quiet,
            started: Instant::now(),
        }
    }
}

/// One piece of work. Shared between threads.
pub struct Bar {
    bar: ProgressBar,
    lines: Option<Mutex<Instant>>,
    what: String,
    unit: &'static str,
    quiet: bool,
    started: Instant,
}

impl Bar {
    /// `n` more units are done.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        let Some(last) = &self.lines else { return };
        let mut last = last.lock().unwrap_or_else(|e| e.into_inner());
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let share = done as f64 / total.max(1) as f64;
            let left = self.started.elapsed().as_secs_f64() * (1.0 - share) / share;
            // The beginning is no measure of the rest: tables are built then.
            let estimate = if share >= 0.02 {
                format!(", about {left:.0} s left")
            } else {
                String::new()
            };
            eprintln!(
                "{}: {:.0} % of {}{estimate}",
                self.what,
                share * 100.0,
                self.amount(total)
            );
        }
    }

    /// The work is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if !self.quiet {
            let total = self.bar.length().unwrap_or(0);
            eprintln!(
                "{}: {} in {:.1} s",
                self.what,
                self.amount(total),
                self.started.elapsed().as_secs_f64()
            );
        }
    }

    fn amount(&self, n: u64) -> String {
        if self.unit == "bytes" {
            crate::units::bytes(n)
        } else {
            format!("{n} {}", self.unit)
        }
    }
}
