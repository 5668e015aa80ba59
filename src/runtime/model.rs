//! Loading a model and its vocabulary.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, anyhow, bail};
use llama_cpp_sys_2 as sys;

use super::{MemoryFile, guard, log};
use crate::gguf::Gguf;

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Load only the vocabulary, no weights.
    pub vocab_only: bool,
    /// Let ggml repack weights for speed. Repacked weights cannot be exchanged by
    /// [`super::WeightHandles`].
    pub repack: bool,
    /// Read names, shapes and types only: no memory is taken for weights, and nothing can be evaluated.
    pub no_weights: bool,
}

/// A loaded model. Weights are memory-mapped.
pub struct Model {
    raw: NonNull<sys::llama_model>,
    path: PathBuf,
    /// The file it is mapped from, if that is in memory.
    _memory: Option<MemoryFile>,
}

// SAFETY: a llama_model is immutable after loading, and llama.cpp allows several contexts on it.
unsafe impl Send for Model {}
// SAFETY: as above; every method that takes &self only reads.
unsafe impl Sync for Model {}

impl Model {
    /// Loads the GGUF file at `path` (for a split model its first shard).
    ///
    /// # Errors
    /// The file is refused by llama.cpp; the message carries llama.cpp's own words.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Self> {
        Self::load_as(path, path, options)
    }

    /// Loads an opened model: from its file, or, if its tensors are made on demand, from a file in memory,
    /// which takes as much of it as the model has bytes (the weights are needed there to run it anyway).
    ///
    /// # Errors
    /// As [`Model::load`]; memory does not suffice; a tensor cannot be made.
    pub fn load_source(gguf: &Gguf, options: &ModelOptions) -> Result<Self> {
        let path = gguf.paths()[0];
        if gguf.is_file() {
            return Self::load(path, options);
        }
        let memory = if options.no_weights || options.vocab_only {
            MemoryFile::header_only(gguf)?
        } else {
            MemoryFile::whole(gguf)?
        };
        let mut model = Self::load_as(memory.path(), path, options)?;
        model._memory = Some(memory);
        Ok(model)
    }

    /// Loads the file at `path`, which messages call `shown`.
    fn load_as(path: &Path, shown: &Path, options: &ModelOptions) -> Result<Self> {
        super::init();
        let c_path = c_path(path)?;
        crate::exit::set_subject(shown);
        log::explain();
        // SAFETY: a plain value.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = 0;
        params.vocab_only = options.vocab_only;
        params.load_mode = sys::LLAMA_LOAD_MODE_MMAP;
        params.use_extra_bufts = options.repack;
        if options.no_weights {
            params.no_alloc = true;
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        // SAFETY: the path is NUL-terminated and the parameters are the defaults with plain values changed.
        let raw = unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), params) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self {
                raw,
                path: shown.to_owned(),
                _memory: None,
            }),
            None => bail!(
                "{}: llama.cpp cannot load this model{}",
                shown.display(),
                log::explain()
            ),
        }
    }

    /// The file the model was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The vocabulary.
    pub fn vocab(&self) -> Vocab<'_> {
        // SAFETY: the model is alive, and its vocabulary lives as long as it.
        let raw = unsafe { sys::llama_model_get_vocab(self.raw.as_ptr()) };
        Vocab { raw, _model: self }
    }

    /// Context length the model was trained with, in tokens; 0 when unknown.
    pub fn n_ctx_train(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_ctx_train(self.raw.as_ptr()) }.max(0) as usize
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the pointer came from llama_model_load_from_file and is freed once; contexts borrow the
        // model and are gone.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) };
    }
}

/// A model's vocabulary.
#[derive(Clone, Copy)]
pub struct Vocab<'m> {
    raw: *const sys::llama_vocab,
    _model: &'m Model,
}

impl Vocab<'_> {
    /// Number of tokens; the length of a row of logits.
    pub fn n_tokens(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_n_tokens(self.raw) }.max(0) as usize
    }

    /// Whether a text should begin with the beginning-of-sequence token.
    pub fn add_bos(&self) -> bool {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_get_add_bos(self.raw) }
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> i32 {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_bos(self.raw) }
    }

    /// Tokens of `text`, with the model's special tokens added (`add_special`) and, with
    /// `parse_special`, special tokens in the text recognised.
    ///
    /// # Errors
    /// The text is longer than 2 GiB, or the model carries no vocabulary.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        let len = i32::try_from(text.len()).context("a text to tokenize is longer than 2 GiB")?;
        if self.n_tokens() == 0 {
            bail!(
                "{}: the model carries no vocabulary",
                self._model.path.display()
            );
        }
        let mut tokens = vec![0i32; text.len() / 2 + 16];
        loop {
            let (raw, buffer) = (self.raw, tokens.as_mut_ptr());
            let room = tokens.len().min(i32::MAX as usize) as i32;
            let n = guard::catch(|| {
                // SAFETY: text and token buffers are passed with their lengths.
                unsafe {
                    guard::llama_tokenize(
                        raw,
                        text.as_ptr().cast(),
                        len,
                        buffer,
                        room,
                        add_special,
                        parse_special,
                    )
                }
            })
            .map_err(|e| {
                anyhow!(
                    "{}: llama.cpp cannot tokenize with this model's vocabulary ({e}); it is damaged, get the model again",
                    self._model.path.display()
                )
            })?;
            if n >= 0 {
                tokens.truncate(n as usize);
                return Ok(tokens);
            }
            if n == i32::MIN {
                bail!("a text to tokenize has more than 2^31 tokens");
            }
            tokens.resize(n.unsigned_abs() as usize, 0);
        }
    }
}

/// `path` as a C string.
pub(super) fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("{}: the path holds a NUL byte", path.display()))
}
