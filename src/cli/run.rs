//! Starting llama.cpp programs with the plugin.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::plugin;
use crate::gguf::Gguf;
use crate::mixed::{self, StandIn};

/// Start a llama.cpp program with moqa's plugin, so that it can run mixed files
///
/// The program is given the file's header without the guard, which opens only once the plugin is loaded: it runs
/// the model rightly or not at all. A stock file is left as it is.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  moqa run -- llama-server -m small.gguf\n  moqa run -- llama-bench -m small.gguf -t 8"
)]
pub(super) struct RunArgs {
    /// The plugin [default: the one that `moqa plugin path` prints]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Leave the file in its place and append --override-kv to the arguments, for systems without files in memory.
    /// Whether the program loads the plugin is then asked first, with --list-devices
    #[arg(long)]
    r#override: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM [ARGS]")]
    command: Vec<OsString>,
}

/// What a model's path is given by.
const MODEL_OPTIONS: [&str; 2] = ["-m", "--model"];
const MODEL_VARIABLE: &str = "LLAMA_ARG_MODEL";
/// llama.cpp's option to keep experts in main memory, as a variable, which programs without it ignore. Devices other
/// than the CPU would take carriers for what they say they are.
const CPU_EXPERTS: &str = "LLAMA_ARG_CPU_MOE";
/// Programs of llama.cpp that do not read it. It is set for them only where they are told to give a GPU no layers.
/// Otherwise the plugin keeps the header closed beside a GPU and says what to do.
const WITHOUT_CPU_EXPERTS: [&str; 2] = ["llama-bench", "llama-simple"];
const GPU_LAYERS: [&str; 2] = ["-ngl", "--n-gpu-layers"];
const KEY: &str = "general.architecture";

pub(super) fn run(args: RunArgs) -> Result<()> {
    let plugin = plugin::find(args.plugin.as_deref())?;
    let Some((program, given)) = args.command.split_first() else {
        bail!("name a program after --");
    };
    let mut prepared = Prepared {
        args: given.to_vec(),
        ..Prepared::default()
    };
    let cpu_experts = keeps_experts_on_cpu(program, given);
    prepared.prepare(args.r#override, cpu_experts)?;
    if args.r#override && prepared.architecture.is_some() {
        ensure!(
            plugin::is_loaded_by(&plugin, program)?,
            "{}: does not load the plugin, without which a mixed file gives nonsense; see moqa plugin check",
            program.display()
        );
    }
    let mut command = Command::new(program);
    command
        .args(&prepared.args)
        .envs(prepared.variables)
        .env(plugin::BACKEND_PATH, plugin);
    crate::exit::uninstall();
    // Replaces this process: signals, terminal and exit status are the program's own. Returns only if it fails.
    let error = command.exec();
    Err(error).with_context(|| format!("{}: cannot be started", program.display()))
}

/// Whether a program keeps experts in main memory once the variable is set for it.
fn keeps_experts_on_cpu(program: &OsStr, args: &[OsString]) -> bool {
    let reads_variable = !Path::new(program)
        .file_stem()
        .is_some_and(|name| WITHOUT_CPU_EXPERTS.iter().any(|p| name == *p));
    // Each number of layers counts: llama-bench tries them all.
    let mut layers = args
        .windows(2)
        .filter(|pair| GPU_LAYERS.iter().any(|option| pair[0] == *option))
        .map(|pair| &pair[1])
        .peekable();
    reads_variable || (layers.peek().is_some() && layers.all(|value| value == "0"))
}

#[derive(Default)]
struct Prepared {
    args: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    stand_ins: Vec<StandIn>,
    architecture: Option<String>,
    models: usize,
}

impl Prepared {
    fn prepare(&mut self, by_override: bool, cpu_experts: bool) -> Result<()> {
        for i in 1..self.args.len() {
            if MODEL_OPTIONS.iter().any(|o| self.args[i - 1] == *o) {
                let value = self.args[i].clone();
                if let Some(path) = self.model(&value, by_override)? {
                    self.args[i] = path;
                }
            }
        }
        if let Some(value) = std::env::var_os(MODEL_VARIABLE).filter(|_| self.models == 0) {
            let replaced = self.model(&value, by_override)?;
            self.variables
                .extend(replaced.map(|path| (MODEL_VARIABLE.into(), path)));
        }
        if self.models == 0 {
            eprintln!("moqa: no model is named with -m; a mixed file would not be recognised");
        }
        if let Some(arch) = &self.architecture {
            if cpu_experts && std::env::var_os(CPU_EXPERTS).is_none() {
                self.variables.push((CPU_EXPERTS.into(), "1".into()));
            }
            if by_override && !overrides_architecture(&self.args) {
                let value = format!("{KEY}=str:{arch}");
                self.args.extend(["--override-kv".into(), value.into()]);
            }
        }
        let headers: Vec<&Path> = self.stand_ins.iter().map(|s| s.header.as_path()).collect();
        if !headers.is_empty() {
            let list = std::env::join_paths(headers)?;
            self.variables
                .push((moqa_mixed::stand_in::ENVIRONMENT.into(), list));
        }
        Ok(())
    }

    /// Looks at a model, or at several separated by commas as llama-bench takes them. Returns what the program is
    /// to be given instead, if anything.
    fn model(&mut self, value: &OsStr, by_override: bool) -> Result<Option<OsString>> {
        self.models += 1;
        let several = value
            .to_str()
            .filter(|v| v.contains(',') && !Path::new(v).exists());
        let Some(list) = several else {
            return self.file(Path::new(value), by_override);
        };
        let mut replaced = Vec::new();
        let mut any = false;
        for path in list.split(',') {
            let new = self.file(Path::new(path), by_override)?;
            any |= new.is_some();
            replaced.push(new.unwrap_or_else(|| path.into()));
        }
        Ok(any.then(|| replaced.join(OsStr::new(","))))
    }

    fn file(&mut self, path: &Path, by_override: bool) -> Result<Option<OsString>> {
        let gguf = match Gguf::open(path) {
            Ok(gguf) => gguf,
            Err(e) => {
                eprintln!("moqa: {e}; the program gets it as it is");
                return Ok(None);
            }
        };
        let Some(arch) = mixed::open_architecture(&gguf) else {
            return Ok(None);
        };
        // What is damaged is better said here than as nonsense or by the plugin.
        mixed::mixed_tensors(&gguf)?;
        self.architecture = Some(arch.to_owned());
        if by_override {
            return Ok(None);
        }
        let stand_in = StandIn::new(&gguf, &links_folder())?;
        let model = stand_in.model.clone().into_os_string();
        self.stand_ins.push(stand_in);
        Ok(Some(model))
    }
}

fn overrides_architecture(args: &[OsString]) -> bool {
    let names = |value: &OsString| {
        let value = value.to_string_lossy();
        value.split(',').any(|v| v.starts_with(&format!("{KEY}=")))
    };
    args.windows(2)
        .any(|w| w[0] == "--override-kv" && names(&w[1]))
}

/// The links are the same in every run of a model, so they may stay.
fn links_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|d| Path::new(d).is_absolute());
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty());
    cache
        .map(PathBuf::from)
        .or_else(|| home.map(|h| Path::new(&h).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("moqa/run")
}
