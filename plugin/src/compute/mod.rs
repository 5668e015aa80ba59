//! Products of experts with activations, shared over threads.
//!
//! A graph's products are gathered into steps of products that do not need each other's results (gate and up are one
//! step). A step first brings every activation row that is needed into each form that is needed, once, and then
//! multiplies. Each result depends on its two rows alone, however the work is cut: results are the same for every number
//! of threads.

pub mod experts;
pub mod glu;
pub mod product;
pub mod rows;
pub mod unpacked;
pub mod weighing;

use std::ops::Range;
use std::sync::Mutex;

use moqa_kernels::{Activation, Isa, Scratch, matmul};

use crate::pool::{Panicked, Pool, lock};
use experts::Experts;
use glu::{Glu, Kind};
use product::{Product, row_offset};
use rows::{Input, Output};
use unpacked::Unpacked;
use weighing::Weighing;

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernels refused.
    #[error("{name}: {error}")]
    Kernel {
        name: String,
        error: moqa_kernels::Error,
    },
    /// A task panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Rows of activations that a task brings into another form.
const ACTIVATION_ROWS: usize = 8;
/// Rows of weights in a task with many activations, if there are tasks enough. Each task packs its activations for
/// itself, for which it should have many rows: 256 instead of 64, or of 48 KiB, made prompts 1.05 to 1.08 times as
/// fast. Results of more would not stay in a core's cache.
const MANY_ROWS: usize = 256;
/// At least so many.
const LEAST_ROWS: usize = 64;
/// Tasks that each thread should find with many activations, since experts' loads differ.
const UNEQUAL_TASKS_PER_THREAD: usize = 16;
/// Up to this many activation rows weights are read once, from memory, for which long pieces are faster: two threads
/// were 1.2 times as fast with 1 MiB as with 48 KiB.
const FEW_TOKENS: usize = 16;
/// The most and the least weights of a task with few activations.
const STREAMED_BYTES: usize = 1 << 20;
const LEAST_STREAMED_BYTES: usize = 48 << 10;
/// Tasks that each thread should find at least, so that none waits long for another.
const TASKS_PER_THREAD: usize = 4;
/// Rows of weights in a task are a multiple of this.
const ROWS: usize = 8;
/// Activation rows that the kernels get at once: as many as they pack at a time, at most.
const TASK_TOKENS: usize = 256;

/// Values that a thread quantizes in a microsecond, about.
const QUANTIZED_PER_MICROSECOND: u64 = 500;
/// Multiplications that a thread does in a microsecond, about.
const MULTIPLIED_PER_MICROSECOND: u64 = 15_000;
/// Values of gated linear units that a thread computes in a microsecond, about.
const GATED_PER_MICROSECOND: u64 = 700;
/// Values that a thread multiplies by weights in a microsecond, about.
const WEIGHTED_PER_MICROSECOND: u64 = 2_000;
/// Values of a gated linear unit or of weighted results in a task, at least.
const GATED_VALUES: usize = 4096;

/// Threads and their memory.
pub struct Computer {
    pool: Pool,
    threads: Vec<Mutex<ThreadMemory>>,
    isa: Isa,
    buffers: Vec<Vec<u8>>,
}

#[derive(Default)]
struct ThreadMemory {
    scratch: Scratch,
    values: Vec<f32>,
    up_values: Vec<f32>,
    rest: Vec<f32>,
    gated: Vec<f32>,
    act_rows: Vec<u32>,
    out: Vec<f32>,
    up_out: Vec<f32>,
}

/// Activation rows in one form.
struct Quantized<'a> {
    input: Input<'a>,
    form: Activation,
    /// Rows of `input` that are needed, and where they are in `bytes`; `u32::MAX` for the others.
    rows: Vec<u32>,
    index: Vec<u32>,
    row_bytes: usize,
    /// Whether each row is followed by one of what rounding took off it.
    fine: bool,
}

impl Quantized<'_> {
    /// Row `row` of `input` into its place.
    fn quantize(
        &self,
        isa: Isa,
        row: usize,
        place: &mut [u8],
        memory: &mut ThreadMemory,
    ) -> Result<(), moqa_kernels::Error> {
        let form = self.input.form();
        let offset = row_offset(form, row);
        let values = self.input.values(offset, form.ne[0], &mut memory.values);
        let (first, second) = place.split_at_mut(self.row_bytes);
        self.form.quantize_row(isa, values, first)?;
        if self.fine {
            self.form.remainder(values, first, &mut memory.rest)?;
            self.form.quantize_row(isa, &memory.rest, second)?;
        }
        Ok(())
    }

    /// Rows in `bytes` for one of `input`.
    fn each(&self) -> usize {
        1 + usize::from(self.fine)
    }

    fn bytes(&self) -> usize {
        self.rows.len() * self.each() * self.row_bytes
    }
}

/// Two products of a step whose results only a gated linear unit wants: they are not written, it is. They go with each
/// other ([`Product::goes_with`]).
pub struct Gated<'a> {
    /// Numbers of the products.
    pub gate: usize,
    pub up: usize,
    pub kind: Kind,
    /// A row for each of theirs.
    pub output: Output<'a>,
}

/// A product and where its activations are.
#[derive(Clone, Copy)]
struct Source {
    product: usize,
    quantized: usize,
}

/// Rows of an expert for all its pairs.
struct Task {
    source: Source,
    /// If it is the gate of a gated linear unit.
    up: Option<Source>,
    expert: usize,
    first: usize,
    end: usize,
}

/// What tasks share.
struct Step<'a> {
    isa: Isa,
    products: &'a [Product<'a>],
    gated: Option<&'a Gated<'a>>,
    quantized: &'a [Quantized<'a>],
    buffers: &'a [Vec<u8>],
}

impl Computer {
    /// With the threads of a pool.
    pub fn new(pool: Pool) -> Self {
        Self {
            threads: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            pool,
            isa: Isa::detect(),
            buffers: Vec::new(),
        }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Computes products of which none needs another's result, and the gated linear unit of two of them.
    ///
    /// # Errors
    /// Kernels refuse, or a task panics; results are then incomplete.
    pub fn step(
        &mut self,
        products: &[Product<'_>],
        gated: Option<&Gated<'_>>,
    ) -> Result<(), Error> {
        let (quantized, tasks) = plan(products, gated, self.pool.threads());
        let mut buffers = std::mem::take(&mut self.buffers);
        let result = self.steps(products, gated, &quantized, &tasks, &mut buffers);
        self.buffers = buffers;
        result
    }

    /// Unpacks the experts in `tensor` ([`Unpacked`]); `None` where there is no memory for it.
    ///
    /// # Errors
    /// Kernels refuse, or a task panics.
    pub fn unpack(&mut self, experts: &Experts, tensor: &[u8]) -> Result<Option<Unpacked>, Error> {
        Unpacked::new(experts, tensor, self.isa, &mut self.pool)
    }

    /// Computes a gated linear unit.
    ///
    /// # Errors
    /// A task panics; results are then incomplete.
    pub fn glu(&mut self, glu: &Glu<'_>) -> Result<(), Error> {
        let form = glu.output.form();
        let (n, n_rows) = (form.ne[0], form.n_rows());
        if n == 0 || n_rows == 0 {
            return Ok(());
        }
        let rows = (GATED_VALUES / n).max(1);
        let alone = (n * n_rows) as u64 / GATED_PER_MICROSECOND < self.pool.worthwhile();
        let memory = &self.threads;
        self.pool
            .run(n_rows.div_ceil(rows), alone, &|thread, tasks| {
                let memory = &mut *lock(&memory[thread]);
                let (x, y) = (&mut memory.values, &mut memory.up_values);
                let gated = at_least(&mut memory.gated, n);
                for task in tasks {
                    for row in task * rows..((task + 1) * rows).min(n_rows) {
                        let [gate, up] = [(&glu.gate, &mut *x), (&glu.up, &mut *y)].map(
                            |((input, first), copy)| {
                                let offset = row_offset(input.form(), row);
                                input.values(offset + first * size_of::<f32>(), n, copy)
                            },
                        );
                        glu.kind.apply(gate, up, gated);
                        // SAFETY: rows of results are disjoint, and each row is in one task.
                        unsafe { glu.output.write(row_offset(form, row), 0, gated) };
                    }
                }
            })?;
        Ok(())
    }

    /// Multiplies rows by their weights.
    ///
    /// # Errors
    /// A task panics; results are then incomplete.
    pub fn weigh(&mut self, weighing: &Weighing<'_>) -> Result<(), Error> {
        let form = weighing.output.form();
        let (n, n_rows) = (form.ne[0], form.n_rows());
        let rows = (GATED_VALUES / n.max(1)).max(1);
        let alone = (n * n_rows) as u64 / WEIGHTED_PER_MICROSECOND < self.pool.worthwhile();
        let memory = &self.threads;
        self.pool
            .run(n_rows.div_ceil(rows), alone, &|thread, tasks| {
                let memory = &mut *lock(&memory[thread]);
                for task in tasks {
                    for row in task * rows..((task + 1) * rows).min(n_rows) {
                        let offset = row_offset(weighing.input.form(), row);
                        let values = weighing.input.values(offset, n, &mut memory.values);
                        let weight = weighing.weights[row];
                        memory.out.clear();
                        memory.out.extend(values.iter().map(|x| x * weight));
                        // SAFETY: rows of results are disjoint, and each row is in one task.
                        unsafe { weighing.output.write(row_offset(form, row), 0, &memory.out) };
                    }
                }
            })?;
        Ok(())
    }

    fn steps(
        &mut self,
        products: &[Product<'_>],
        gated: Option<&Gated<'_>>,
        quantized: &[Quantized<'_>],
        tasks: &[Task],
        buffers: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        buffers.resize_with(quantized.len().max(buffers.len()), Vec::new);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let fail = |name: &str, error| {
            lock(&failure).get_or_insert(Error::Kernel {
                name: name.to_owned(),
                error,
            });
        };
        let (isa, memory) = (self.isa, &self.threads);

        // Rows are handed to tasks as disjoint pieces of the buffers.
        let mut pieces = Vec::new();
        for (q, buffer) in quantized.iter().zip(buffers.iter_mut()) {
            let bytes = q.bytes();
            if buffer.len() < bytes {
                buffer.resize(bytes, 0);
            }
            let rows = q.rows.chunks(ACTIVATION_ROWS);
            let places =
                buffer[..bytes].chunks_mut((ACTIVATION_ROWS * q.each() * q.row_bytes).max(1));
            pieces.extend(
                rows.zip(places)
                    .map(|(rows, place)| Mutex::new((q, rows, place))),
            );
        }
        let values: usize = quantized
            .iter()
            .map(|q| q.rows.len() * q.input.form().ne[0])
            .sum();
        let alone = values as u64 / QUANTIZED_PER_MICROSECOND < self.pool.worthwhile();
        self.pool.run(pieces.len(), alone, &|thread, tasks| {
            let memory = &mut *lock(&memory[thread]);
            for task in tasks {
                let (q, rows, place) = &mut *lock(&pieces[task]);
                let places = place.chunks_exact_mut(q.each() * q.row_bytes);
                for (row, place) in rows.iter().zip(places) {
                    if let Err(error) = q.quantize(isa, *row as usize, place, memory) {
                        fail("activations", error);
                    }
                }
            }
        })?;
        drop(pieces);

        let step = Step {
            isa,
            products,
            gated,
            quantized,
            buffers,
        };
        let multiplied: u64 = products.iter().map(Product::multiplications).sum();
        let alone = multiplied / MULTIPLIED_PER_MICROSECOND < self.pool.worthwhile();
        self.pool.run(tasks.len(), alone, &|thread, numbers| {
            let memory = &mut *lock(&memory[thread]);
            for number in numbers {
                let task = &tasks[number];
                if let Err(error) = step.task(task, memory) {
                    fail(&products[task.source.product].name, error);
                }
            }
        })?;
        failure.into_inner().unwrap_or_default().map_or(Ok(()), Err)
    }
}

/// The first `n` values, of any content: zeros for all would take time.
fn at_least(values: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if values.len() < n {
        values.resize(n, 0.0);
    }
    &mut values[..n]
}

impl Step<'_> {
    fn task(&self, task: &Task, memory: &mut ThreadMemory) -> Result<(), moqa_kernels::Error> {
        let product = &self.products[task.source.product];
        let n_rows = task.end - task.first;
        let pairs = product.of(task.expert);
        for first in (0..pairs.len()).step_by(TASK_TOKENS) {
            let range = first..(first + TASK_TOKENS).min(pairs.len());
            let pairs = &pairs[range.clone()];
            let ThreadMemory {
                scratch,
                act_rows,
                gated,
                out,
                up_out,
                ..
            } = memory;
            let out = self.multiply(task, task.source, range.clone(), act_rows, out, scratch)?;
            if let Some((up, unit)) = task.up.zip(self.gated) {
                let up_out = self.multiply(task, up, range, act_rows, up_out, scratch)?;
                let gated = at_least(gated, out.len());
                unit.kind.apply(out, up_out, gated);
                for (pair, values) in pairs.iter().zip(gated.chunks_exact(n_rows)) {
                    let offset = row_offset(unit.output.form(), pair.row as usize);
                    // SAFETY: as below.
                    unsafe { unit.output.write(offset, task.first, values) };
                }
                continue;
            }
            for (pair, values) in pairs.iter().zip(out.chunks_exact_mut(n_rows)) {
                if let Some(weight) = product.weights.get(pair.row as usize) {
                    values.iter_mut().for_each(|value| *value *= weight);
                }
                // SAFETY: rows of results are disjoint, a pair has its own row, and tasks of an expert have other
                // columns.
                unsafe { product.output.write(pair.output, task.first, values) };
            }
        }
        Ok(())
    }

    /// The task's rows of weights times the pairs `pairs` of its expert, pair by pair, in `out`.
    fn multiply<'o>(
        &self,
        task: &Task,
        source: Source,
        pairs: Range<usize>,
        act_rows: &mut Vec<u32>,
        out: &'o mut Vec<f32>,
        scratch: &mut Scratch,
    ) -> Result<&'o mut [f32], moqa_kernels::Error> {
        let product = &self.products[source.product];
        let quantized = &self.quantized[source.quantized];
        let acts = &self.buffers[source.quantized][..quantized.bytes()];
        let weights = product.experts.weights(product.tensor, task.expert)?;
        let pairs = &product.of(task.expert)[pairs];
        let rows = task.first..task.end;
        let n = pairs.len() * rows.len();
        let each = quantized.each() as u32;
        act_rows.clear();
        for part in 0..each {
            let row = |pair: &product::Pair| quantized.index[pair.input as usize] * each + part;
            act_rows.extend(pairs.iter().map(row));
        }
        let out = at_least(out, n * each as usize);
        matmul(self.isa, &weights, rows, acts, act_rows, out, scratch)?;
        let (first, second) = out.split_at_mut(n);
        for (x, rest) in first.iter_mut().zip(second) {
            *x += *rest;
        }
        Ok(first)
    }
}

/// What to bring into which form, and the tasks.
fn plan<'a>(
    products: &[Product<'a>],
    gated: Option<&Gated<'_>>,
    threads: usize,
) -> (Vec<Quantized<'a>>, Vec<Task>) {
    let total: usize = products.iter().map(Product::weight_bytes).sum();
    let total_rows: usize = products.iter().map(Product::weight_rows).sum();
    let many_rows =
        (total_rows / (threads * UNEQUAL_TASKS_PER_THREAD)).clamp(LEAST_ROWS, MANY_ROWS);
    let mut quantized: Vec<Quantized<'a>> = Vec::new();
    let mut tasks = Vec::new();
    for (number, product) in products.iter().enumerate() {
        // What its gate's tasks do.
        if gated.is_some_and(|g| g.up == number) {
            continue;
        }
        let up = gated.filter(|g| g.gate == number).map(|g| g.up);
        let experts = product.experts;
        for expert in 0..experts.count() {
            let pairs = product.of(expert);
            if pairs.is_empty() || experts.n_out() == 0 {
                continue;
            }
            let mut source = |number| Source {
                product: number,
                quantized: quantize(&mut quantized, &products[number], expert),
            };
            let (source, up) = (source(number), up.map(source));
            let row_bytes = experts.row_bytes(expert)
                + up.map_or(0, |up| products[up.product].experts.row_bytes(expert));
            let rows = if pairs.len() > FEW_TOKENS {
                many_rows
            } else {
                (total / (threads * TASKS_PER_THREAD)).clamp(LEAST_STREAMED_BYTES, STREAMED_BYTES)
                    / row_bytes.max(1)
            };
            let rows = (rows / ROWS * ROWS).max(ROWS);
            tasks.extend((0..experts.n_out()).step_by(rows).map(|first| Task {
                source,
                up,
                expert,
                first,
                end: (first + rows).min(experts.n_out()),
            }));
        }
    }
    (quantized, tasks)
}

/// Has the activations of an expert quantized; where they will be.
fn quantize<'a>(quantized: &mut Vec<Quantized<'a>>, product: &Product<'a>, expert: usize) -> usize {
    let form = product.experts.ty(expert).activation();
    let fine = product.fine && form != Activation::F32;
    let at = quantized
        .iter()
        .position(|q| q.form == form && q.fine == fine && q.input.is_same(&product.input));
    let at = at.unwrap_or_else(|| {
        quantized.push(Quantized {
            input: product.input,
            form,
            rows: Vec::new(),
            index: vec![u32::MAX; product.input.form().n_rows()],
            row_bytes: form.row_bytes(product.experts.n_in()),
            fine,
        });
        quantized.len() - 1
    });
    let q = &mut quantized[at];
    for pair in product.of(expert) {
        let index = &mut q.index[pair.input as usize];
        if *index == u32::MAX {
            // Fewer rows than `u32` counts: `Product` checks.
            *index = q.rows.len() as u32;
            q.rows.push(pair.input);
        }
    }
    at
}

#[cfg(test)]
mod tests;
