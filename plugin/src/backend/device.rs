//! The device and its registry entry: what a host asks before it computes.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use ggml_backend_sys as sys;
use moqa_kernels::Activation;

use super::buffer::{self, NAME, is_expert_weight, is_weight};
use super::tensor::Tensor;
use super::{guarded_or, neighbours, stream};
use crate::host::Host;
use crate::log::debug;

/// The functions of the device.
pub fn interface() -> sys::ggml_backend_device_i {
    sys::ggml_backend_device_i {
        get_name: Some(get_name),
        get_description: Some(get_description),
        get_memory: Some(get_memory),
        get_type: Some(get_type),
        get_props: Some(get_props),
        init_backend: Some(stream::init_backend),
        get_buffer_type: Some(get_buffer_type),
        buffer_from_host_ptr: Some(buffer_from_host_ptr),
        supports_op: Some(supports_op),
        supports_buft: Some(supports_buft),
        ..Default::default()
    }
}

/// The functions of the registry entry.
pub fn reg_interface() -> sys::ggml_backend_reg_i {
    sys::ggml_backend_reg_i {
        get_name: Some(reg_name),
        get_device_count: Some(device_count),
        get_device: Some(get_device),
        get_proc_address: Some(get_proc_address),
    }
}

unsafe extern "C" fn reg_name(_: sys::ggml_backend_reg_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn device_count(_: sys::ggml_backend_reg_t) -> usize {
    1
}

unsafe extern "C" fn get_device(
    _: sys::ggml_backend_reg_t,
    index: usize,
) -> sys::ggml_backend_dev_t {
    guarded_or(std::ptr::null_mut(), |host| match index {
        0 => {
            // The host has accepted this backend when it asks for its devices.
            neighbours::open_stand_ins(host);
            super::device(host)
        }
        _ => std::ptr::null_mut(),
    })
}

unsafe extern "C" fn get_proc_address(
    _: sys::ggml_backend_reg_t,
    name: *const c_char,
) -> *mut c_void {
    if name.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: hosts give a string.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"ggml_backend_set_n_threads" => stream::set_n_threads as *mut c_void,
        b"ggml_backend_set_abort_callback" => stream::set_abort_callback as *mut c_void,
        _ => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn get_name(_: sys::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn get_description(_: sys::ggml_backend_dev_t) -> *const c_char {
    c"moqa: quantized weights on the CPU".as_ptr()
}

/// None of its own: hosts count the CPU's.
unsafe extern "C" fn get_memory(_: sys::ggml_backend_dev_t, free: *mut usize, total: *mut usize) {
    // SAFETY: hosts give two numbers to write, or null.
    unsafe {
        if let Some(free) = free.as_mut() {
            *free = 0;
        }
        if let Some(total) = total.as_mut() {
            *total = 0;
        }
    }
}

/// `ACCEL` devices are asked for weights that stay on the CPU before the CPU is.
unsafe extern "C" fn get_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_ACCEL
}

unsafe extern "C" fn get_props(
    dev: sys::ggml_backend_dev_t,
    props: *mut sys::ggml_backend_dev_props,
) {
    // SAFETY: hosts give properties to write. Those before August 2026 are without `mmap_support`, whose byte is
    // padding in them.
    unsafe {
        let Some(props) = props.as_mut() else { return };
        props.name = get_name(dev);
        props.description = get_description(dev);
        props.memory_free = 0;
        props.memory_total = 0;
        props.type_ = get_type(dev);
        props.device_id = std::ptr::null();
        props.caps.async_ = false;
        props.caps.host_buffer = false;
        props.caps.buffer_from_host_ptr = true;
        props.caps.events = false;
        props.caps.mmap_support = true;
    }
}

unsafe extern "C" fn get_buffer_type(
    _: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    guarded_or(std::ptr::null_mut(), super::buffer_type)
}

unsafe extern "C" fn buffer_from_host_ptr(
    _: sys::ggml_backend_dev_t,
    base: *mut c_void,
    size: usize,
    _max_tensor_size: usize,
) -> sys::ggml_backend_buffer_t {
    guarded_or(std::ptr::null_mut(), |host| {
        if base.is_null() || size == 0 {
            return std::ptr::null_mut();
        }
        buffer::from_host_memory(host, base, size)
    })
}

/// Activations may lie in any memory that the CPU can read.
unsafe extern "C" fn supports_buft(
    _: sys::ggml_backend_dev_t,
    buft: sys::ggml_backend_buffer_type_t,
) -> bool {
    guarded_or(false, |host| {
        // SAFETY: hosts give a buffer type of theirs or null.
        !buft.is_null() && unsafe { (host.symbols.ggml_backend_buft_is_host)(buft) }
    })
}

unsafe extern "C" fn supports_op(_: sys::ggml_backend_dev_t, op: *const sys::ggml_tensor) -> bool {
    guarded_or(false, |host| {
        // SAFETY: hosts give an operation that stays as it is during the call.
        unsafe { Tensor::new(host, op) }.is_some_and(|op| supports(host, op))
    })
}

/// Whether a host should have us compute an operation.
fn supports(host: &'static Host, op: Tensor<'_>) -> bool {
    let n = &host.numbers;
    let number = op.op();
    if [n.none, n.view, n.reshape, n.permute, n.transpose].contains(&number) {
        return true;
    }
    if number == n.mul_mat_id || number == n.mul_mat {
        let Some(weights) = op.src(0) else {
            return false;
        };
        if !is_ours(host, weights) {
            return false;
        }
        let reason = refusal(host, op, weights);
        // SAFETY: the buffer of a tensor that the host gave.
        let offered = unsafe { buffer::of_host(host, weights.buffer()) }.is_none();
        if offered {
            match reason {
                None => debug!("{}: taken ({})", weights.name(), op.op_name()),
                Some(reason) => debug!("{}: left to the CPU: {reason}", weights.name()),
            }
        }
        return reason.is_none() || is_mixed(host, weights);
    }
    if is_glu_of_products(host, op) || is_weighted_product(host, op) {
        return true;
    }
    // Whatever else is done with a mixed container, nobody else may take its bytes for numbers; computing it fails.
    op.sources().any(|src| is_mixed(host, src))
}

/// Whether weight matrices that are not of experts are ours too: as `MOQA_DENSE` says (0 or 1), otherwise where there
/// is no GPU device, to which the program may lend large products with matrices that the CPU backend keeps.
fn takes_dense(host: &'static Host) -> bool {
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| match std::env::var("MOQA_DENSE").as_deref() {
        Ok("0" | "off" | "no" | "false") => false,
        Ok("1" | "on" | "yes" | "true") => true,
        _ => neighbours::gpu(host).is_none(),
    })
}

/// Whether it is a gated linear unit of products that are computed here: others stay where their sources are.
fn is_glu_of_products(host: &'static Host, op: Tensor<'_>) -> bool {
    if op.glu().is_none() {
        return false;
    }
    is_row_of_floats(op)
        && op
            .sources()
            .all(|source| is_row_of_floats(source) && is_our_product(host, source.root()))
}

/// Whether it multiplies results of experts that are computed here by weights, one for each slot and token.
fn is_weighted_product(host: &'static Host, op: Tensor<'_>) -> bool {
    let Some((product, weights)) = op.src(0).zip(op.weighting()) else {
        return false;
    };
    product.op() == host.numbers.mul_mat_id
        && [op, product, weights].into_iter().all(is_row_of_floats)
        && is_our_product(host, product)
}

fn is_row_of_floats(tensor: Tensor<'_>) -> bool {
    tensor.is_f32() && tensor.nb()[0] == size_of::<f32>()
}

fn is_our_product(host: &'static Host, product: Tensor<'_>) -> bool {
    [host.numbers.mul_mat_id, host.numbers.mul_mat].contains(&product.op())
        && product.src(0).is_some_and(|weights| {
            is_ours(host, weights) && refusal(host, product, weights).is_none()
        })
}

/// Whether a tensor lies in a buffer of our type, or is offered with an empty one.
fn is_ours(host: &'static Host, tensor: Tensor<'_>) -> bool {
    let buffer = tensor.buffer();
    // SAFETY: the buffer of a tensor that the host gave.
    !buffer.is_null()
        && unsafe { (host.symbols.ggml_backend_buffer_get_type)(buffer) }
            == super::buffer_type(host)
}

fn is_mixed(host: &'static Host, tensor: Tensor<'_>) -> bool {
    if !is_ours(host, tensor) || !is_expert_weight(&tensor.root()) {
        return false;
    }
    // SAFETY: the buffer of a tensor that the host gave.
    let Some(buffer) = (unsafe { buffer::of_host(host, tensor.buffer()) }) else {
        return false;
    };
    // A damaged one too: computing it fails with the reason.
    buffer.experts(tensor.root()).map_or(true, |e| e.is_mixed())
}

/// Why a product with our weights is not ours to compute.
fn refusal(host: &'static Host, op: Tensor<'_>, weights: Tensor<'_>) -> Option<&'static str> {
    let by_ids = op.op() == host.numbers.mul_mat_id;
    let Some(input) = op.src(1) else {
        return Some("there are no activations");
    };
    let Some(ty) = weights.ty() else {
        return Some("its type is not known");
    };
    let Some(shape) = weights.shape() else {
        return Some("it is not three-dimensional");
    };
    if !is_expert_weight(&weights.root()) {
        if by_ids || shape.n_expert != 1 || !is_weight(&weights.root()) {
            return Some("it is neither an expert tensor nor a weight matrix");
        }
        if ty.activation() == Activation::F32 {
            return Some("it is a matrix of floats");
        }
        if !takes_dense(host) {
            return Some("it is not an expert tensor");
        }
    }
    if usize::try_from(shape.n_in)
        .ok()
        .and_then(|n| ty.row_bytes(n))
        .is_none()
    {
        return Some("its rows do not hold whole blocks");
    }
    let whole = weights.nb()[0] == ty.block_bytes()
        && ty.row_bytes(shape.n_in as usize) == Some(weights.nb()[1])
        && weights.nb()[1].checked_mul(shape.n_out as usize) == Some(weights.nb()[2]);
    if weights.is_view() || !whole {
        return Some("it is a view");
    }
    if !input.is_f32() || input.nb()[0] != size_of::<f32>() || !op.is_f32() {
        return Some("activations or results are not rows of floats");
    }
    if by_ids && !op.src(2).is_some_and(|ids| ids.is_i32()) {
        return Some("expert numbers are not integers");
    }
    None
}
