//! Evaluating tokens.

use std::panic::resume_unwind;
use std::ptr::NonNull;

use anyhow::{Result, anyhow, bail, ensure};
use llama_cpp_sys_2 as sys;

use super::graph::{Hook, Observer, callback};
use super::{Model, guard, log};

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

/// A prefix and the continuations that follow it, each on its own.
#[derive(Clone, Debug)]
pub struct Branches<'t> {
    /// What all continuations share; at least one token.
    pub prefix: &'t [i32],
    /// The continuations, each at least one token.
    pub continuations: Vec<&'t [i32]>,
}

impl Branches<'_> {
    /// Tokens that are evaluated: the prefix once, and of each continuation all but the last token, which
    /// predicts nothing that is asked for.
    pub fn n_tokens(&self) -> usize {
        self.prefix.len() + self.n_inner()
    }

    /// Rows of logits that are computed.
    pub fn n_rows(&self) -> usize {
        1 + self.n_inner()
    }

    fn n_inner(&self) -> usize {
        self.continuations
            .iter()
            .map(|c| c.len().saturating_sub(1))
            .sum()
    }
}

/// A context on a model. One evaluation at a time.
pub struct Context<'m> {
    raw: NonNull<sys::llama_context>,
    batch: sys::llama_batch,
    capacity: usize,
    /// Whether several sequences may share tokens.
    branching: bool,
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
        let capacity = options.n_ctx.saturating_mul(options.n_seq);
        Self::create(model, options, capacity, false)
    }

    /// Creates a context for [`Context::evaluate_branches`]: together at most `options.n_ctx` tokens and
    /// `options.n_seq` continuations.
    ///
    /// # Errors
    /// llama.cpp refuses, out of memory for example.
    pub fn for_branches(model: &'m Model, options: ContextOptions) -> Result<Self> {
        ensure!(
            options.n_ctx > 0 && options.n_seq > 0,
            "a context needs at least one token and one sequence"
        );
        let capacity = options.n_ctx;
        Self::create(model, options, capacity, true)
    }

    fn create(
        model: &'m Model,
        options: ContextOptions,
        capacity: usize,
        branching: bool,
    ) -> Result<Self> {
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
        // As llama-perplexity: batches are then split in the same way, which kernels may depend on. Sequences
        // that share tokens need one cache.
        params.kv_unified = branching;
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
        let ids_per_token = if branching { options.n_seq } else { 1 };
        // SAFETY: plain sizes; the batch is freed in drop.
        let batch = unsafe { sys::llama_batch_init(capacity as i32, 0, ids_per_token as i32) };
        Ok(Self {
            raw,
            batch,
            capacity,
            branching,
            hook,
            options,
            n_vocab: model.vocab().n_tokens(),
            model,
        })
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
        self.check_tokens(sequences.iter().copied().flatten())?;
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
        }
        self.decode(observer)?;
        let rows = len - first_output;
        let mut out = Vec::with_capacity(sequences.len());
        for seq in 0..sequences.len() {
            let index = (seq * len + first_output) as i32;
            // SAFETY: logits were asked for at this index and the rows that follow it; the rows of a
            // sequence's outputs are contiguous.
            out.push(unsafe { self.logits(index, rows)? });
        }
        Ok(out)
    }

    /// Evaluates continuations of prefixes from an empty cache; a prefix is evaluated once for all of its
    /// continuations. The context must come from [`Context::for_branches`].
    ///
    /// Returns for each of `trees`, for each continuation, for each of its tokens the `n_vocab` logits that
    /// predict the token.
    ///
    /// # Errors
    /// Sizes do not fit, or llama.cpp fails to evaluate.
    pub fn evaluate_branches<'c>(
        &'c mut self,
        trees: &[Branches<'_>],
    ) -> Result<Vec<Vec<Vec<&'c [f32]>>>> {
        ensure!(
            self.branching,
            "this context was not made for continuations that share a prefix"
        );
        ensure!(
            !trees.is_empty()
                && trees.iter().all(|t| !t.prefix.is_empty()
                    && !t.continuations.is_empty()
                    && t.continuations.iter().all(|c| !c.is_empty())),
            "prefixes and continuations must not be empty"
        );
        let n_tokens: usize = trees.iter().map(Branches::n_tokens).sum();
        let n_seq: usize = trees.iter().map(|t| t.continuations.len()).sum();
        ensure!(
            n_tokens <= self.capacity && n_seq <= self.options.n_seq,
            "{n_seq} continuations of {n_tokens} tokens do not fit a context of {} and {}",
            self.options.n_seq,
            self.capacity
        );
        self.check_tokens(trees.iter().flat_map(|t| {
            let continuations = t.continuations.iter().copied().flatten();
            t.prefix.iter().chain(continuations)
        }))?;
        let mut at = 0;
        let mut first_seq = 0;
        // Index in the batch of a tree's last prefix token, and of its continuations' first tokens.
        let mut places: Vec<(usize, Vec<usize>)> = Vec::with_capacity(trees.len());
        for tree in trees {
            let seqs = first_seq..first_seq + tree.continuations.len();
            for (pos, &token) in tree.prefix.iter().enumerate() {
                let output = pos + 1 == tree.prefix.len();
                // SAFETY: `at` stays below n_tokens <= capacity, and no more ids are written than the
                // n_seq that the batch was allocated with.
                unsafe { self.put(at, token, pos, seqs.clone(), output) };
                at += 1;
            }
            let last = at - 1;
            let mut starts = Vec::with_capacity(tree.continuations.len());
            for (seq, continuation) in seqs.clone().zip(&tree.continuations) {
                starts.push(at);
                for (i, &token) in continuation[..continuation.len() - 1].iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { self.put(at, token, tree.prefix.len() + i, seq..seq + 1, true) };
                    at += 1;
                }
            }
            places.push((last, starts));
            first_seq = seqs.end;
        }
        self.batch.n_tokens = at as i32;
        self.decode(None)?;
        let mut out = Vec::with_capacity(trees.len());
        for (tree, (last, starts)) in trees.iter().zip(places) {
            // SAFETY: logits were asked for at this index.
            let first = unsafe { self.logits(last as i32, 1)? };
            let mut branches = Vec::with_capacity(starts.len());
            for (start, continuation) in starts.into_iter().zip(&tree.continuations) {
                let mut rows = Vec::with_capacity(continuation.len());
                rows.push(first);
                for index in start..start + continuation.len() - 1 {
                    // SAFETY: as above.
                    rows.push(unsafe { self.logits(index as i32, 1)? });
                }
                branches.push(rows);
            }
            out.push(branches);
        }
        Ok(out)
    }

    fn check_tokens<'t>(&self, tokens: impl IntoIterator<Item = &'t i32>) -> Result<()> {
        let n_vocab = self.n_vocab as i32;
        if let Some(bad) = tokens.into_iter().find(|&&t| t < 0 || t >= n_vocab) {
            bail!("token {bad} is outside the model's vocabulary of {n_vocab}");
        }
        Ok(())
    }

    /// Writes a token that belongs to `seqs` into the batch.
    ///
    /// # Safety
    /// `at` is below the batch's capacity, and `seqs` are no more than it has room for in a token.
    unsafe fn put(
        &mut self,
        at: usize,
        token: i32,
        pos: usize,
        seqs: std::ops::Range<usize>,
        output: bool,
    ) {
        // SAFETY: the caller keeps to the batch's allocation.
        unsafe {
            *self.batch.token.add(at) = token;
            *self.batch.pos.add(at) = pos as i32;
            *self.batch.n_seq_id.add(at) = seqs.len() as i32;
            let ids = *self.batch.seq_id.add(at);
            for (i, seq) in seqs.enumerate() {
                *ids.add(i) = seq as i32;
            }
            *self.batch.logits.add(at) = i8::from(output);
        }
    }

    /// Evaluates the batch from an empty cache.
    fn decode(&mut self, observer: Option<&mut dyn Observer>) -> Result<()> {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), true) };
        log::explain();
        let hook: *mut Hook = &mut *self.hook;
        let attached = observer.map(|o| Hook::attach(hook, o));
        let (raw, batch) = (self.raw.as_ptr(), self.batch);
        // SAFETY: context and batch are alive; the callback's user data is the boxed hook.
        let status = guard::catch(|| unsafe { guard::llama_decode(raw, batch) });
        drop(attached);
        if let Some(panic) = self.hook.take_panic() {
            resume_unwind(panic);
        }
        let status = status.map_err(|e| {
            anyhow!(
                "{}: llama.cpp failed to evaluate {} tokens ({e}){}",
                self.model.path().display(),
                self.batch.n_tokens,
                log::explain()
            )
        })?;
        ensure!(
            status == 0,
            "{}: llama.cpp failed to evaluate {} tokens (status {status}){}",
            self.model.path().display(),
            self.batch.n_tokens,
            log::explain()
        );
        Ok(())
    }

    /// `rows` rows of logits, the first that of the batch's token `index`. They stay valid until the next
    /// evaluation, which needs `&mut self`.
    ///
    /// # Safety
    /// The rows were computed by the latest evaluation and lie one after another.
    unsafe fn logits(&self, index: i32, rows: usize) -> Result<&[f32]> {
        // SAFETY: the context is alive; the caller vouches for the rows.
        unsafe {
            let p = sys::llama_get_logits_ith(self.raw.as_ptr(), index);
            ensure!(
                !p.is_null(),
                "llama.cpp returned no logits for token {index}{}",
                log::explain()
            );
            Ok(std::slice::from_raw_parts(p, rows * self.n_vocab))
        }
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
