//! Streams: each has its threads and computes graphs.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use ggml_backend_sys as sys;

use super::buffer::{self, Buffer, NAME, of_host};
use super::tensor::Tensor;
use super::{guarded_or, repack};
use crate::compute::experts::Experts;
use crate::compute::glu::{Glu, Kind};
use crate::compute::product::Product;
use crate::compute::rows::{self, Input, Output};
use crate::compute::weighing::Weighing;
use crate::compute::{Computer, Gated};
use crate::host::Host;
use crate::host::symbols::openmp_of_cpu_backend;
use crate::log::{debug, error, fatal};
use crate::pool::{Pool, lock};

/// As many as ggml uses when nobody says.
const DEFAULT_THREADS: usize = 4;

/// What identifies this kind of stream.
static GUID: [u8; 16] = *b"\x9e\x1f\x6dmoqa\x42\xb7\x0a\x51\xc3\x88\x2e\xf4\x17";

struct Stream {
    threads: usize,
    computer: Option<Computer>,
    abort: Abort,
    counts: Counts,
}

/// Whom to ask whether to go on.
#[derive(Clone, Copy)]
struct Abort {
    callback: sys::ggml_abort_callback,
    data: *mut c_void,
}

// SAFETY: the host calls a stream's functions from one thread at a time, and asks for the callback to be called from
// whichever thread computes.
unsafe impl Send for Abort {}

#[derive(Default)]
struct Counts {
    graphs: u64,
    by_ids: u64,
    dense: u64,
    mixed: u64,
    glu: u64,
    weighted: u64,
    rows: u64,
    steps: u64,
}

/// The functions of streams.
pub fn interface() -> sys::ggml_backend_i {
    sys::ggml_backend_i {
        get_name: Some(get_name),
        free: Some(free),
        graph_compute: Some(graph_compute),
        ..Default::default()
    }
}

unsafe extern "C" fn get_name(_: sys::ggml_backend_t) -> *const c_char {
    NAME.as_ptr()
}

/// A new stream. Hosts make one for each context, once the weights are loaded: where a container is damaged they get
/// none, which llama.cpp reports as a context that could not be made. Loading itself cannot fail: llama.cpp reads
/// files into host-visible buffers behind our back and does not look at `init_tensor`'s status for mapped ones.
pub unsafe extern "C" fn init_backend(
    _: sys::ggml_backend_dev_t,
    _: *const c_char,
) -> sys::ggml_backend_t {
    guarded_or(std::ptr::null_mut(), |host| {
        let damage = buffer::damage();
        for message in &damage {
            fatal(format_args!("{message}"));
        }
        if !damage.is_empty() {
            fatal(format_args!(
                "a model that is loaded is damaged: no context is made while it is"
            ));
            return std::ptr::null_mut();
        }
        let stream = Box::new(Mutex::new(Stream {
            threads: DEFAULT_THREADS,
            computer: None,
            abort: Abort {
                callback: None,
                data: std::ptr::null_mut(),
            },
            counts: Counts::default(),
        }));
        host.abi.new_backend(
            GUID.as_ptr().cast_mut().cast(),
            &super::callbacks(),
            super::device(host),
            Box::into_raw(stream).cast(),
        )
    })
}

/// # Safety
/// `backend` is a live stream of ours.
unsafe fn stream<'a>(host: &Host, backend: sys::ggml_backend_t) -> &'a Mutex<Stream> {
    // SAFETY: the caller's promise: the context is what `init_backend` made.
    unsafe { &*host.abi.backend_context(backend).cast::<Mutex<Stream>>() }
}

unsafe extern "C" fn free(backend: sys::ggml_backend_t) {
    guarded_or((), |host| {
        if backend.is_null() {
            return;
        }
        // SAFETY: the host frees a stream once; both boxes are those that `init_backend` made.
        unsafe {
            let context = host.abi.backend_context(backend).cast::<Mutex<Stream>>();
            let stream = Box::from_raw(context);
            let counts = &lock(&stream).counts;
            debug!(
                "freed a stream: {} graphs, {} MUL_MAT_ID ({} of mixed tensors) and {} MUL_MAT nodes in {} steps, {} rows, {} GLU and {} MUL nodes",
                counts.graphs,
                counts.by_ids,
                counts.mixed,
                counts.dense,
                counts.steps,
                counts.rows,
                counts.glu,
                counts.weighted
            );
            host.abi.free_backend(backend);
        }
    });
}

/// `ggml_backend_set_n_threads`, which hosts find by name.
pub unsafe extern "C" fn set_n_threads(backend: sys::ggml_backend_t, threads: c_int) {
    guarded_or((), |host| {
        // SAFETY: a live stream of ours.
        let mut stream = lock(unsafe { stream(host, backend) });
        stream.threads = usize::try_from(threads).unwrap_or(1).max(1);
    });
}

/// `ggml_backend_set_abort_callback`, which hosts find by name.
pub unsafe extern "C" fn set_abort_callback(
    backend: sys::ggml_backend_t,
    callback: sys::ggml_abort_callback,
    data: *mut c_void,
) {
    guarded_or((), |host| {
        // SAFETY: a live stream of ours.
        lock(unsafe { stream(host, backend) }).abort = Abort { callback, data };
    });
}

unsafe extern "C" fn graph_compute(
    backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
) -> sys::ggml_status {
    guarded_or(sys::GGML_STATUS_FAILED, |host| {
        // SAFETY: a live stream of ours.
        let stream = &mut *lock(unsafe { stream(host, backend) });
        // SAFETY: a graph whose tensors are allocated and, while this runs, nobody else's.
        match unsafe { stream.compute(host, graph) } {
            Ok(status) => status,
            Err(message) => {
                error!("{message}");
                sys::GGML_STATUS_FAILED
            }
        }
    })
}

/// The CPU backend's threads where it has OpenMP's, unless `MOQA_THREADS` is `own`; otherwise our own.
fn pool(threads: usize) -> Pool {
    let own = std::env::var("MOQA_THREADS").as_deref() == Ok("own");
    match openmp_of_cpu_backend().filter(|_| !own && threads > 1) {
        Some(parallel) => {
            debug!("{threads} threads, those of the CPU backend");
            Pool::of_team(parallel, threads)
        }
        None => {
            debug!("{threads} threads of its own");
            Pool::new(threads)
        }
    }
}

/// Whether products with weights of a buffer have activations rounded twice: as `MOQA_ACTIVATIONS` says, otherwise those
/// of mixed models, but for [`bears_rounding`]. Such files are made for the least loss, of which int8 activations are a
/// fifth at four bits a weight.
fn is_fine(buffer: &Buffer, weights: Tensor<'_>) -> bool {
    static WANTED: OnceLock<Option<bool>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var("MOQA_ACTIVATIONS");
        match wanted.as_deref() {
            Ok("fine") => Some(true),
            Ok("int8") => Some(false),
            Ok(other) => {
                error!("MOQA_ACTIVATIONS is {other}: neither fine nor int8");
                None
            }
            Err(_) => None,
        }
    });
    wanted.unwrap_or_else(|| buffer.is_mixed() && !bears_rounding(&weights.name()))
}

/// Whether weights are of a gate, up or query projection: their activations have just been normed. To round those once
/// adds 1 % to the divergence of the shipped model at Q4_K_M's bytes, to round all once 24 %.
fn bears_rounding(weights: &str) -> bool {
    [".ffn_gate", ".ffn_up", ".attn_q."]
        .into_iter()
        .any(|projection| weights.contains(projection))
}

/// A node whose tensors were looked up, before its results are claimed.
struct Node<'a> {
    tensor: Tensor<'a>,
    weights: Tensor<'a>,
    experts: Arc<Experts>,
    /// [`Product::fine`].
    fine: bool,
    /// Weights that results are multiplied by: of a `MUL` that the host has written over them.
    weighting: Option<Tensor<'a>>,
}

/// A gated linear unit of two nodes that wait, whose results nobody else wants.
struct Unit<'a> {
    tensor: Tensor<'a>,
    kind: Kind,
    /// Numbers of the nodes.
    gate: usize,
    up: usize,
}

impl<'a> Unit<'a> {
    /// `None` if it is not one. A graph does not say who else may want a node's results: other graphs may. But where the
    /// host has a later node of this one write over them, nobody can.
    fn new(
        tensor: Tensor<'a>,
        kind: Kind,
        nodes: &[Node<'_>],
        later: impl Iterator<Item = Tensor<'a>> + Clone,
    ) -> Option<Self> {
        let number = |source: Tensor<'_>| nodes.iter().position(|n| n.tensor.is(source));
        let (gate, up) = (number(tensor.src(0)?)?, number(tensor.src(1)?)?);
        let alike = |node: &Node<'_>| node.tensor.form().map(|form| form.ne);
        let unwanted = |node: &Node<'_>| {
            let memory = node.tensor.memory();
            let wanted = |t: Tensor<'_>| t.sources().any(|s| s.root().is(node.tensor));
            node.weighting.is_none()
                && !later.clone().any(wanted)
                && later
                    .clone()
                    .any(|t| t.is_computed() && touches(memory, t.memory()))
        };
        let output = tensor.memory();
        let free = |node: &Node<'_>| {
            let mut used = node.tensor.sources().map(|s| s.memory());
            !touches(node.tensor.memory(), output) && !used.any(|used| touches(used, output))
        };
        let both = [&nodes[gate], &nodes[up]];
        let fits = gate != up
            && alike(both[0]).is_ok_and(|ne| alike(both[1]) == Ok(ne))
            && alike(both[0]) == tensor.form().map(|form| form.ne)
            && both.into_iter().all(unwanted)
            && nodes.iter().all(free);
        fits.then_some(Self {
            tensor,
            kind,
            gate,
            up,
        })
    }
}

impl Stream {
    /// # Safety
    /// `graph` is the host's, with allocated tensors that are ours while this runs.
    unsafe fn compute(
        &mut self,
        host: &'static Host,
        graph: *mut sys::ggml_cgraph,
    ) -> Result<sys::ggml_status, String> {
        // SAFETY: the caller's promise.
        let count = unsafe { (host.symbols.ggml_graph_n_nodes)(graph) };
        self.counts.graphs += 1;
        let mut step: Vec<Node<'_>> = Vec::new();
        for number in 0..count {
            // SAFETY: a node of the graph.
            let tensor =
                unsafe { Tensor::new(host, (host.symbols.ggml_graph_node)(graph, number)) };
            let Some(tensor) = tensor.filter(Tensor::is_wanted) else {
                continue;
            };
            let n = &host.numbers;
            if [n.none, n.view, n.reshape, n.permute, n.transpose].contains(&tensor.op()) {
                continue;
            }
            if tensor.op() != n.mul_mat_id && tensor.op() != n.mul_mat {
                if let Some((kind, swapped)) = tensor.glu() {
                    self.counts.glu += 1;
                    // SAFETY: the caller's promise.
                    unsafe {
                        let later = (number + 1..count).filter_map(|later| {
                            Tensor::new(host, (host.symbols.ggml_graph_node)(graph, later))
                        });
                        if let Some(unit) = Unit::new(tensor, kind, &step, later) {
                            self.flush(host, &mut step, Some(unit))?;
                        } else {
                            self.flush(host, &mut step, None)?;
                            self.glu(tensor, kind, swapped)?;
                        }
                    }
                    if self.aborted() {
                        return Ok(sys::GGML_STATUS_ABORTED);
                    }
                    continue;
                }
                if let Some(weights) = tensor.weighting() {
                    self.counts.weighted += 1;
                    if step.last_mut().is_some_and(|n| n.take(tensor, weights)) {
                        continue;
                    }
                    // SAFETY: the caller's promise.
                    unsafe {
                        self.flush(host, &mut step, None)?;
                        self.weigh(tensor, weights)?;
                    }
                    if self.aborted() {
                        return Ok(sys::GGML_STATUS_ABORTED);
                    }
                    continue;
                }
                return Err(format!(
                    "{}: {} is not computed here; was it given the bytes of a mixed tensor?",
                    tensor.name(),
                    tensor.op_name()
                ));
            }
            // SAFETY: the caller's promise.
            let node = unsafe { Node::new(host, tensor) }?;
            if step.iter().any(|earlier| earlier.meets(&node)) {
                // SAFETY: the caller's promise.
                unsafe { self.flush(host, &mut step, None) }?;
                if self.aborted() {
                    return Ok(sys::GGML_STATUS_ABORTED);
                }
            }
            step.push(node);
        }
        // SAFETY: the caller's promise.
        unsafe { self.flush(host, &mut step, None) }?;
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    fn aborted(&self) -> bool {
        // SAFETY: the host's callback with the data that it gave for it.
        self.abort
            .callback
            .is_some_and(|f| unsafe { f(self.abort.data) })
    }

    /// Computes the nodes that are waiting.
    ///
    /// # Safety
    /// As for `compute`, and no node needs another's results or shares its memory.
    unsafe fn flush(
        &mut self,
        host: &'static Host,
        nodes: &mut Vec<Node<'_>>,
        unit: Option<Unit<'_>>,
    ) -> Result<(), String> {
        if nodes.is_empty() {
            return Ok(());
        }
        for node in nodes.iter() {
            // SAFETY: the caller's promise.
            let bytes = unsafe { node.weight_bytes() };
            repack::unpack(node.weights, &node.experts, bytes, self.computer());
        }
        // SAFETY: the caller's promise: `meets` found nothing in common.
        let products: Result<Vec<_>, _> =
            nodes.iter().map(|n| unsafe { n.product(host) }).collect();
        let products = products?;
        for (node, product) in nodes.iter().zip(&products) {
            let by_ids = node.tensor.op() == host.numbers.mul_mat_id;
            self.counts.by_ids += u64::from(by_ids);
            self.counts.dense += u64::from(!by_ids);
            self.counts.mixed += u64::from(node.experts.is_mixed());
            self.counts.rows += product.pairs.len() as u64;
        }
        self.counts.steps += 1;
        let mut alone = None;
        let gated = match unit {
            Some(unit) if products[unit.gate].goes_with(&products[unit.up]) => {
                // SAFETY: the caller's promise.
                let output = unsafe { unit.tensor.output() };
                let name = unit.tensor.name();
                Some(Gated {
                    gate: unit.gate,
                    up: unit.up,
                    kind: unit.kind,
                    output: output.map_err(|e| format!("{name}: {e}"))?,
                })
            }
            _ => {
                alone = unit;
                None
            }
        };
        self.computer()
            .step(&products, gated.as_ref())
            .map_err(|e| e.to_string())?;
        drop(products);
        if let Some(unit) = alone {
            // SAFETY: the caller's promise.
            unsafe { self.glu(unit.tensor, unit.kind, false) }?;
        }
        nodes.clear();
        Ok(())
    }

    /// Computes a gated linear unit.
    ///
    /// # Safety
    /// `tensor` is a node that the host wants computed, its tensors are allocated and nobody else's while this runs.
    unsafe fn glu(&mut self, tensor: Tensor<'_>, kind: Kind, swapped: bool) -> Result<(), String> {
        let name = tensor.name();
        let error = |e: &dyn std::fmt::Display| format!("{name}: {e}");
        let gate = tensor.src(0).ok_or_else(|| error(&"it has no gate"))?;
        // SAFETY: the caller's promise.
        let output = unsafe { tensor.output() }.map_err(|e| error(&e))?;
        let mut copies = [Vec::new(), Vec::new()];
        let [first, second] = &mut copies;
        // SAFETY: the caller's promise; where results lie over a source, that is copied before they are written.
        let (gate, up) = unsafe {
            let gate = source(gate, &output, first).map_err(|e| error(&e))?;
            let up = tensor.src(1).map(|up| source(up, &output, second));
            (gate, up.transpose().map_err(|e| error(&e))?)
        };
        let glu = Glu::new(name.to_string(), kind, gate, up, swapped, output);
        let glu = glu.map_err(|e| error(&e))?;
        self.computer()
            .glu(&glu)
            .map_err(|e| format!("{}: {e}", glu.name))
    }

    /// Multiplies rows by their weights.
    ///
    /// # Safety
    /// As for `glu`.
    unsafe fn weigh(&mut self, tensor: Tensor<'_>, weights: Tensor<'_>) -> Result<(), String> {
        let name = tensor.name();
        let error = |e: &dyn std::fmt::Display| format!("{name}: {e}");
        let values = tensor.src(0).ok_or_else(|| error(&"it has no values"))?;
        let mut copy = Vec::new();
        // SAFETY: the caller's promise; weights are read before results are written.
        let weighing = unsafe {
            let output = tensor.output().map_err(|e| error(&e))?;
            let weights = weights.input().map_err(|e| error(&e))?.singles();
            let values = source(values, &output, &mut copy).map_err(|e| error(&e))?;
            Weighing::new(values, weights.unwrap_or_default(), output).map_err(|e| error(&e))?
        };
        self.computer().weigh(&weighing).map_err(|e| error(&e))
    }

    /// The threads, as many as the host wants.
    fn computer(&mut self) -> &mut Computer {
        if self
            .computer
            .as_ref()
            .is_some_and(|c| c.threads() != self.threads)
        {
            // The old threads end before new ones begin.
            self.computer = None;
        }
        let threads = self.threads;
        self.computer
            .get_or_insert_with(|| Computer::new(pool(threads)))
    }
}

/// The values of a tensor, from `copy` if `output` lies over them: the host may have results written in place.
///
/// # Safety
/// As for [`Tensor::input`].
unsafe fn source<'a>(
    tensor: Tensor<'a>,
    output: &Output<'_>,
    copy: &'a mut Vec<u8>,
) -> Result<Input<'a>, rows::Error> {
    // SAFETY: the caller's promise, and the copy is as long.
    unsafe {
        let input = tensor.input()?;
        let (data, size) = input.memory();
        if !output.overlaps(data, size) {
            return Ok(input);
        }
        copy.extend_from_slice(std::slice::from_raw_parts(data, size));
        Input::new(copy.as_ptr(), input.form())
    }
}

/// Whether two pieces of memory, begins and lengths, have bytes in common.
fn touches(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

impl<'a> Node<'a> {
    /// # Safety
    /// `tensor` is a node that the host wants computed.
    unsafe fn new(host: &'static Host, tensor: Tensor<'a>) -> Result<Self, String> {
        let name = tensor.name();
        let weights = tensor
            .src(0)
            .ok_or_else(|| format!("{name}: it has no weights"))?;
        // SAFETY: the buffer of a tensor of the graph.
        let buffer = unsafe { of_host(host, weights.buffer()) }
            .ok_or_else(|| format!("{name}: its weights are not in a buffer of this backend"))?;
        let experts = buffer.experts(weights.root())?;
        if weights.is_view() {
            return Err(format!(
                "{name}: its weights are a view of {}",
                weights.root().name()
            ));
        }
        Ok(Self {
            tensor,
            weights,
            experts,
            fine: is_fine(&buffer, weights),
            weighting: None,
        })
    }

    /// Takes over a multiplication of this node's results by weights, if the host has it written over them: then nobody
    /// else wants them as they are.
    fn take(&mut self, product: Tensor<'a>, weights: Tensor<'a>) -> bool {
        let alike = |a: Tensor<'_>, b: Tensor<'_>| {
            a.data() == b.data() && a.form().is_ok_and(|form| b.form() == Ok(form))
        };
        let fits = self.weighting.is_none()
            && product.src(0).is_some_and(|s| s.is(self.tensor))
            && alike(product, self.tensor)
            && !touches(self.tensor.memory(), weights.memory());
        if fits {
            self.weighting = Some(weights);
        }
        fits
    }

    /// Whether two nodes cannot be computed at once: one's results are among the other's sources or results.
    fn meets(&self, later: &Node<'_>) -> bool {
        let (mine, others) = (self.tensor.memory(), later.tensor.memory());
        touches(mine, others)
            || later.tensor.sources().any(|s| touches(mine, s.memory()))
            || self.tensor.sources().any(|s| touches(others, s.memory()))
    }

    /// # Safety
    /// The node's tensors are allocated.
    unsafe fn weight_bytes(&self) -> &[u8] {
        // SAFETY: the caller's promise; `experts` found the bytes inside the weights' buffer.
        unsafe {
            std::slice::from_raw_parts(self.weights.data().cast_const(), self.weights.bytes())
        }
    }

    /// # Safety
    /// The node's tensors are allocated, and its results are nobody else's while the product lives.
    unsafe fn product(&self, host: &'static Host) -> Result<Product<'_>, String> {
        let name = self.tensor.name();
        let error = |e: &dyn std::fmt::Display| format!("{name}: {e}");
        let input = self
            .tensor
            .src(1)
            .ok_or_else(|| error(&"it has no activations"))?;
        // SAFETY: the caller's promise.
        let (input, output, bytes) = unsafe {
            let bytes = self.weight_bytes();
            let input = input.input().map_err(|e| error(&e))?;
            let output: Output<'_> = self.tensor.output().map_err(|e| error(&e))?;
            (input, output, bytes)
        };
        let (data, size) = input.memory();
        if output.overlaps(data, size) || output.overlaps(bytes.as_ptr(), bytes.len()) {
            return Err(error(&"its results lie over its sources"));
        }
        let name = self.weights.name().into_owned();
        let product = if self.tensor.op() == host.numbers.mul_mat_id {
            let ids = self
                .tensor
                .src(2)
                .ok_or_else(|| error(&"it has no expert numbers"))?;
            // SAFETY: the caller's promise.
            let ids = unsafe { ids.ids() }.map_err(|e| error(&e))?;
            Product::by_ids(name, &self.experts, bytes, input, &ids, output)
        } else {
            Product::dense(name, &self.experts, bytes, input, output)
        };
        let mut product = product.map_err(|e| error(&e))?;
        product.fine = self.fine;
        let Some(weights) = self.weighting else {
            return Ok(product);
        };
        // SAFETY: the caller's promise.
        let weights = unsafe { weights.input() }.map_err(|e| error(&e))?;
        product
            .weighted(weights.singles().unwrap_or_default())
            .map_err(|e| error(&e))
    }
}
