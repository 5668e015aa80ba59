//! Where the plugin is, and whether a program takes it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use crate::output::AtomicFile;

/// llama.cpp loads the library that this variable names, before any model.
pub(super) const BACKEND_PATH: &str = "GGML_BACKEND_PATH";
/// A library, or a folder with one, to use instead of those beside the program.
const PLUGIN_PATH: &str = "MOQA_PLUGIN_PATH";
/// The plugin's name when installed, and as cargo builds it.
const NAMES: [&str; 2] = [
    const_name("libggml-moqa.so", "libggml-moqa.dylib"),
    const_name("libggml_moqa.so", "libggml_moqa.dylib"),
];

const fn const_name(elf: &'static str, mac: &'static str) -> &'static str {
    if cfg!(target_os = "macos") { mac } else { elf }
}

/// Find, install and check the llama.cpp plugin that runs mixed files
#[derive(Args)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Subcommand)]
enum PluginCommand {
    /// Print where the plugin is
    Path,
    /// Copy the plugin to a folder of yours
    Install {
        /// The folder [default: ~/.local/lib/moqa]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Start a llama.cpp program and see whether it loads the plugin
    Check {
        /// The plugin [default: the one that `moqa plugin path` prints]
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// The program and its arguments [default arguments: --list-devices]
        #[arg(last = true, required = true, value_name = "PROGRAM [ARGS]")]
        command: Vec<OsString>,
    },
}

#[derive(Serialize)]
struct Found {
    path: PathBuf,
}

#[derive(Serialize)]
struct Check {
    plugin: PathBuf,
    program: String,
    loaded: bool,
    messages: Vec<String>,
}

pub(super) fn run(args: PluginArgs, global: &Global) -> Result<()> {
    match args.command {
        PluginCommand::Path => {
            let path = find(None)?;
            global.print(&Found { path: path.clone() }, || {
                format!("{}\n", path.display())
            })
        }
        PluginCommand::Install { dir } => install(dir, global),
        PluginCommand::Check { plugin, command } => {
            let check = check(&find(plugin.as_deref())?, &command)?;
            global.print(&check, || check.to_text())?;
            ensure!(check.loaded, "{}: did not load the plugin", check.program);
            Ok(())
        }
    }
}

/// The plugin: the one that is given, or the first one found where it may be.
///
/// # Errors
/// There is none; says where it was looked for.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.is_file(), "{}: no such plugin", path.display());
        return absolute(path);
    }
    if let Some(path) = std::env::var_os(PLUGIN_PATH).filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        let found = if path.is_dir() {
            in_folder(&path)
        } else {
            Some(path.clone()).filter(|p| p.is_file())
        };
        let found = found
            .with_context(|| format!("{PLUGIN_PATH} is {}: there is no plugin", path.display()))?;
        return absolute(&found);
    }
    let folders = folders();
    match folders.iter().find_map(|f| in_folder(f)) {
        Some(path) => absolute(&path),
        None => {
            let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            bail!(
                "the plugin {} is in none of {}; build it (cargo build --release), or name it with --plugin or {PLUGIN_PATH}",
                NAMES[0],
                looked.join(", ")
            )
        }
    }
}

fn in_folder(folder: &Path) -> Option<PathBuf> {
    let files = NAMES.iter().map(|name| folder.join(name));
    files.into_iter().find(|p| p.is_file())
}

/// Beside the program (as cargo leaves it), where packages put libraries, where `install` puts it.
fn folders() -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(bin) = std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.to_owned()))
    {
        all.extend([bin.clone(), bin.join("../lib"), bin.join("../lib/moqa")]);
    }
    all.extend(own_folder());
    all
}

fn own_folder() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty())?;
    Some(Path::new(&home).join(".local/lib/moqa"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("{}: cannot read", path.display()))
}

fn install(dir: Option<PathBuf>, global: &Global) -> Result<()> {
    let source = find(None)?;
    let dir = match dir {
        Some(dir) => dir,
        None => own_folder().context("HOME is not set; name a folder with --dir")?,
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("{}: cannot make it", dir.display()))?;
    let target = dir.join(NAMES[0]);
    let same = std::fs::canonicalize(&target).is_ok_and(|t| t == source);
    if !same {
        // A running program may have the old one mapped: it keeps it, as this makes another file.
        let mut file = AtomicFile::create(&target)?;
        let copied = File::open(&source).and_then(|mut from| io::copy(&mut from, &mut file));
        copied.with_context(|| format!("{}: cannot copy it", source.display()))?;
        file.commit()?;
    }
    let path = absolute(&target)?;
    global.print(&Found { path: path.clone() }, || {
        format!(
            "{}\nmoqa run finds it there or beside the program; to have llama.cpp load it always:\n  export {BACKEND_PATH}={}\n",
            path.display(),
            path.display()
        )
    })
}

/// Whether a program takes the plugin, found by starting it to list its devices.
///
/// # Errors
/// It cannot be started.
pub(super) fn is_loaded_by(plugin: &Path, program: &OsStr) -> Result<bool> {
    Ok(check(plugin, &[program.to_owned()])?.loaded)
}

/// Starts a program with the plugin; by default only to list its devices, for which it loads its backends.
fn check(plugin: &Path, command: &[OsString]) -> Result<Check> {
    let Some((program, args)) = command.split_first() else {
        bail!("name a program after --");
    };
    let shown = program.to_string_lossy().into_owned();
    let mut child = Command::new(program);
    if args.is_empty() {
        child.arg("--list-devices");
    } else {
        child.args(args);
    }
    let output = child
        .env(BACKEND_PATH, plugin)
        .env("MOQA_LOG", "debug")
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("{shown}: cannot be started"))?;
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let file = plugin.display().to_string();
    let (mut loaded, mut refused) = (false, false);
    let mut messages = Vec::new();
    for line in text.lines() {
        let own = line.trim_start().starts_with("moqa:") || line.contains(" moqa: ");
        let reported = line.contains("load_backend: loaded") && line.contains(&file);
        loaded |= own || reported;
        refused |= line.contains("failed to") && line.contains(&file);
        if own || line.contains(&file) || line.contains("MOQA") {
            messages.push(line.trim_end().to_owned());
        }
    }
    Ok(Check {
        plugin: plugin.to_owned(),
        program: shown,
        loaded: loaded && !refused,
        messages,
    })
}

impl Check {
    fn to_text(&self) -> String {
        let mut s = String::new();
        for line in &self.messages {
            s += &format!("  {line}\n");
        }
        let verdict = if self.loaded {
            "loads"
        } else {
            "does not load (a build without loadable backends, another version of their interface, or no arguments that make it load them)"
        };
        s + &format!("{} {verdict} {}\n", self.program, self.plugin.display())
    }
}
