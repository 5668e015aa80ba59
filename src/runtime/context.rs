//! Evaluating tokens.

use std::panic::resume_unwind;
use std::ptr::NonNull;

use anyhow::{Result, bail, ensure};
use llama_cpp_sys_2 as sys;

use super::graph::{Hook, Observer, callback};
use super::{Model, log};

/// Size of a context. The defaults are those of llama-perplexity and llama-imatrix.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Tokens of a sequence.
    pub n_ctx: usize,
    /// Sequences evaluated together.
    pub n_seq: usize,
    /// Worker threads.
    pub n_threads: usize,
    /// Whether evaluations may be observed. An observed graph is computed without ggml's fusions.
    pub observable: bool,
}

impl ContextOptions {
    /// As many sequences of `n_ctx` tokens as fit 2,048 tokens and 256 MiB of logits.
    pub fn for_chunks(n_ctx: usize, n_vocab: usize, n_threads: usize) -> Self {
        let by_tokens = (2048 / n_ctx.max(1)).max(1);
        let by_logits = ((256 << 20) / (4 * n_vocab.max(1) * n_ctx.max(1))).max(1);
        Self {
            n_ctx,
            n_seq: by_tokens.min(by_logits),
            n_threads,
            observable: false,
        }
    }
}

/// A context on a model. One evaluation at a time.
pub struct Context<'m> {
    raw: NonNull<sys::llama_context>,
    batch: sys::llama_batch,
    capacity: usize,
    hook: Box<Hook>,
    options: ContextOptions,
    n_vocab: usize,
    model: &'m Model,
}

impl<'m> Context<'m> {
    /// Creates a context.
    ///
    /// # Errors
    /// llama.cpp refuses, out of memory for example.
    pub fn new(model: &'m Model, options: ContextOptions) -> Result<Self> {
        ensure!(
            options.n_ctx > 0 && options.n_seq > 0,
            "a context needs at least one token and one sequence"
        );
        let capacity = options.n_ctx * options.n_seq;
        ensure!(
            capacity <= i32::MAX as usize / 2,
            "a context of {capacity} tokens is too large"
        );
        let mut hook = Hook::new();
        // SAFETY: a plain value.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = capacity as u32;
        params.n_batch = capacity as u32;
        params.n_ubatch = params.n_ubatch.min(capacity as u32);
        params.n_seq_max = options.n_seq as u32;
        params.n_threads = options.n_threads.max(1) as i32;
        params.n_threads_batch = options.n_threads.max(1) as i32;
        // As llama-perplexity: batches are then split in the same way, which kernels may depend on.
        params.kv_unified = false;
        if options.observable {
            params.cb_eval = Some(callback);
            params.cb_eval_user_data = std::ptr::from_mut::<Hook>(&mut hook).cast();
        }
        // SAFETY: the model outlives the context (lifetime 'm), and the hook is boxed and kept beside it.
        let raw = unsafe { sys::llama_init_from_model(model.raw(), params) };
        let Some(raw) = NonNull::new(raw) else {
            bail!(
                "{}: llama.cpp cannot create a context of {capacity} tokens{}",
                model.path().display(),
                log::explain()
            );
        };
        // SAFETY: plain sizes; the batch is freed in drop.
        let batch = unsafe { sys::llama_batch_init(capacity as i32, 0, 1) };
        Ok(Self {
            raw,
            batch,
            capacity,
            hook,
            options,
            n_vocab: model.vocab().n_tokens(),
            model,
        })
    }

    /// The options the context was made with.
    pub fn options(&self) -> &ContextOptions {
        &self.options
    }

    /// Evaluates sequences from an empty cache, each at most `n_ctx` tokens, at most `n_seq` of them, all of
    /// one length. Logits are computed for positions from `first_output` on. `observer` sees the graph.
    ///
    /// Returns the logits: per sequence `(len - first_output)` rows of `n_vocab` values.
    ///
    /// # Errors
    /// Sizes do not fit, or llama.cpp fails to evaluate.
    pub fn evaluate<'c>(
        &'c mut self,
        sequences: &[&[i32]],
        first_output: usize,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Vec<&'c [f32]>> {
        let len = sequences.first().map_or(0, |s| s.len());
        let n_tokens: usize = sequences.iter().map(|s| s.len()).sum();
        ensure!(
            len > 0 && sequences.iter().all(|s| s.len() == len),
            "sequences must be of one length and not empty"
        );
        ensure!(
            len <= self.options.n_ctx
                && sequences.len() <= self.options.n_seq
                && n_tokens <= self.capacity,
            "{} sequences of {len} tokens do not fit a context of {} x {}",
            sequences.len(),
            self.options.n_seq,
            self.options.n_ctx
        );
        ensure!(first_output < len, "no position to compute logits for");
        ensure!(
            observer.is_none() || self.options.observable,
            "this context was not made to be observed"
        );
        let n_vocab = self.n_vocab as i32;
        if let Some(bad) = sequences
            .iter()
            .flat_map(|s| s.iter())
            .find(|&&t| t < 0 || t >= n_vocab)
        {
            bail!("token {bad} is outside the model's vocabulary of {n_vocab}");
        }
        // SAFETY: the batch was allocated for `capacity` tokens with one sequence id each, and
        // n_tokens <= capacity.
        unsafe {
            let mut i = 0;
            for (seq, tokens) in sequences.iter().enumerate() {
                for (pos, &token) in tokens.iter().enumerate() {
                    *self.batch.token.add(i) = token;
                    *self.batch.pos.add(i) = pos as i32;
                    *self.batch.n_seq_id.add(i) = 1;
                    **self.batch.seq_id.add(i) = seq as i32;
                    *self.batch.logits.add(i) = i8::from(pos >= first_output);
                    i += 1;
                }
            }
            self.batch.n_tokens = i as i32;
            sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), true);
        }
        log::explain();
        let hook: *mut Hook = &mut *self.hook;
        let guard = observer.map(|o| Hook::attach(hook, o));
        // SAFETY: context and batch are alive; the callback's user data is the boxed hook.
        let status = unsafe { sys::llama_decode(self.raw.as_ptr(), self.batch) };
        drop(guard);
        if let Some(panic) = self.hook.take_panic() {
            resume_unwind(panic);
        }
        ensure!(
            status == 0,
            "{}: llama.cpp failed to evaluate {n_tokens} tokens (status {status}){}",
            self.model.path().display(),
            log::explain()
        );
        let rows = len - first_output;
        let mut out = Vec::with_capacity(sequences.len());
        for seq in 0..sequences.len() {
            let index = (seq * len + first_output) as i32;
            // SAFETY: logits were asked for at this index; the rows of a sequence's outputs are contiguous
            // and stay valid until the next evaluation, which needs &mut self.
            let logits = unsafe {
                let p = sys::llama_get_logits_ith(self.raw.as_ptr(), index);
                ensure!(
                    !p.is_null(),
                    "llama.cpp returned no logits for token {index}{}",
                    log::explain()
                );
                std::slice::from_raw_parts(p, rows * self.n_vocab)
            };
            out.push(logits);
        }
        Ok(out)
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: both came from llama.cpp and are freed once.
        unsafe {
            sys::llama_batch_free(self.batch);
            sys::llama_free(self.raw.as_ptr());
        }
    }
}
