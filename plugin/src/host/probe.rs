//! Whether a host is what its version number says. The host's own functions are called with tables in which every
//! place holds another function, and the place they call is compared with the layout that the version should have;
//! tensors are made by the host and read through our struct. So a changed layout is noticed before anything is
//! registered, instead of crashing at the first token.

use std::ffi::{CStr, c_void};
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ggml_backend_sys as sys;

use super::abi::{Abi, Positions};
use super::symbols::{Registry, Symbols};

/// Why a host is not one that this library knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A backend API that is not known.
    #[error("the program's backend API version is {0}; this library knows 2 and 3")]
    Version(i32),
    /// The number is known, the layout is not.
    #[error(
        "the program says backend API {api} and its {what} is laid out in another way (found {found}, expected {expected})"
    )]
    Layout {
        api: i32,
        what: &'static str,
        found: String,
        expected: String,
    },
    /// ggml could not make tensors to look at.
    #[error("the program's ggml did not make a tensor to compare with")]
    NoTensor,
    /// Tensors are other than the header says.
    #[error("the program's tensors differ from those this library was built for: {0}")]
    Tensor(&'static str),
}

/// What a host calls its operations and types, and how it marks nodes.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub none: sys::ggml_op,
    pub view: sys::ggml_op,
    pub reshape: sys::ggml_op,
    pub permute: sys::ggml_op,
    pub transpose: sys::ggml_op,
    pub mul_mat: sys::ggml_op,
    pub mul_mat_id: sys::ggml_op,
    pub f32: sys::ggml_type,
    pub i32: sys::ggml_type,
    /// Whether nodes that are to be computed are marked so (from January 2026 on): those without are skipped.
    pub marks_computed: bool,
}

/// More places than any table has.
const PLACES: usize = 32;
static LAST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Notes that place `N` was called. C callers remove their arguments themselves, so it stands for every type.
extern "C" fn place<const N: usize>() -> usize {
    LAST.store(N, SeqCst);
    // Not null and not zero, whatever it is taken for.
    N + 1
}

macro_rules! table {
    ($($n:literal)*) => { [$(place::<$n> as extern "C" fn() -> usize as *const c_void),*] };
}

fn table() -> [*const c_void; PLACES] {
    table!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
}

fn called(call: impl FnOnce()) -> usize {
    LAST.store(usize::MAX, SeqCst);
    call();
    LAST.load(SeqCst)
}

/// Which place of the table an address is.
fn place_of(address: *const c_void) -> usize {
    table()
        .iter()
        .position(|p| *p == address)
        .unwrap_or(usize::MAX)
}

/// The layout of a host.
///
/// # Errors
/// It is none of those that are known.
pub fn layout(host: &Symbols, registry: Option<Registry>) -> Result<Abi, Error> {
    let api = registry.and_then(|r| {
        // SAFETY: the host's registry exists while it loads us, and gives null or live entries of which the version
        // is the first member in every API version.
        unsafe {
            ((r.ggml_backend_reg_count)() > 0)
                .then(|| (r.ggml_backend_reg_get)(0))
                .filter(|reg| !reg.is_null())
                .map(|reg| (*reg).api_version)
        }
    });
    // Without another backend to read it from, the functions tell; a host of a later version then refuses us itself.
    let api = api.unwrap_or(if host.has_alloc_n { 3 } else { 2 });
    let abi = match (api, host.has_2d) {
        (2, false) => Abi::V2,
        (2, true) => Abi::V2With2d,
        (3, _) => Abi::V3,
        (other, _) => return Err(Error::Version(other)),
    };
    let (found, expected) = (positions(host), abi.positions());
    let compare = |what, found: String, expected: String| {
        if found == expected {
            return Ok(());
        }
        Err(Error::Layout {
            api,
            what,
            found,
            expected,
        })
    };
    let text = |p: &Positions| {
        [
            format!("{:?}", p.buffer_type),
            format!("{:?} {}", p.buffer, p.buffer_context),
            format!("{:?}", p.backend),
        ]
    };
    let ([t, b, s], [et, eb, es]) = (text(&found), text(&expected));
    compare("buffer type", t, et)?;
    compare("buffer", b, eb)?;
    compare("stream", s, es)?;
    compare(
        "device",
        format!("{:?}", device(host)),
        format!("{:?}", DEVICE),
    )?;
    compare(
        "registry entry",
        format!("{:?}", reg(host)),
        format!("{:?}", REG),
    )?;
    Ok(abi)
}

/// Functions of a device in the order that `device` calls them, and the place of its registry entry.
const DEVICE: [usize; 13] = {
    use sys::ggml_backend_device as D;
    const fn at(offset: usize) -> usize {
        offset / size_of::<usize>()
    }
    [
        at(offset_of!(D, iface.get_name)),
        at(offset_of!(D, iface.get_description)),
        at(offset_of!(D, iface.get_memory)),
        at(offset_of!(D, iface.get_type)),
        at(offset_of!(D, iface.get_props)),
        at(offset_of!(D, iface.init_backend)),
        at(offset_of!(D, iface.get_buffer_type)),
        at(offset_of!(D, iface.get_host_buffer_type)),
        at(offset_of!(D, iface.buffer_from_host_ptr)),
        at(offset_of!(D, iface.supports_op)),
        at(offset_of!(D, iface.supports_buft)),
        at(offset_of!(D, iface.offload_op)),
        at(offset_of!(D, reg)),
    ]
};

/// As `DEVICE`, of a registry entry, counted behind its version.
const REG: [usize; 4] = {
    use sys::ggml_backend_reg as R;
    const fn at(offset: usize) -> usize {
        (offset - offset_of!(R, iface)) / size_of::<usize>()
    }
    [
        at(offset_of!(R, iface.get_name)),
        at(offset_of!(R, iface.get_device_count)),
        at(offset_of!(R, iface.get_device)),
        at(offset_of!(R, iface.get_proc_address)),
    ]
};

fn device(host: &Symbols) -> [usize; 13] {
    let mut places = table();
    let dev: sys::ggml_backend_dev_t = places.as_mut_ptr().cast();
    use std::ptr::{null, null_mut};
    let (mut free, mut total) = (0, 0);
    // Larger than the properties of any version, which the host clears.
    let mut props = [0u64; 64];
    // SAFETY: the table is longer than a device, and every place is a function that ignores its arguments, so that
    // whatever the host calls is callable.
    unsafe {
        [
            called(|| _ = (host.ggml_backend_dev_name)(dev)),
            called(|| _ = (host.ggml_backend_dev_description)(dev)),
            called(|| (host.ggml_backend_dev_memory)(dev, &mut free, &mut total)),
            called(|| _ = (host.ggml_backend_dev_type)(dev)),
            called(|| (host.ggml_backend_dev_get_props)(dev, props.as_mut_ptr().cast())),
            called(|| _ = (host.ggml_backend_dev_init)(dev, null())),
            called(|| _ = (host.ggml_backend_dev_buffer_type)(dev)),
            called(|| _ = (host.ggml_backend_dev_host_buffer_type)(dev)),
            called(|| _ = (host.ggml_backend_dev_buffer_from_host_ptr)(dev, null_mut(), 0, 0)),
            called(|| _ = (host.ggml_backend_dev_supports_op)(dev, null())),
            called(|| _ = (host.ggml_backend_dev_supports_buft)(dev, null_mut())),
            called(|| _ = (host.ggml_backend_dev_offload_op)(dev, null())),
            place_of((host.ggml_backend_dev_backend_reg)(dev).cast()),
        ]
    }
}

fn reg(host: &Symbols) -> [usize; 4] {
    #[repr(C)]
    struct Entry {
        version: i32,
        places: [*const c_void; PLACES],
    }
    let mut entry = Entry {
        version: 0,
        places: table(),
    };
    let reg: sys::ggml_backend_reg_t = (&raw mut entry).cast();
    // SAFETY: as in `device`.
    unsafe {
        [
            called(|| _ = (host.ggml_backend_reg_name)(reg)),
            called(|| _ = (host.ggml_backend_reg_dev_count)(reg)),
            called(|| _ = (host.ggml_backend_reg_dev_get)(reg, 0)),
            called(|| _ = (host.ggml_backend_reg_get_proc_address)(reg, c"probe".as_ptr())),
        ]
    }
}

fn positions(host: &Symbols) -> Positions {
    /// As many places as any version's buffer has, handed over by value.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Places([*const c_void; PLACES]);
    type Init = unsafe extern "C" fn(
        sys::ggml_backend_buffer_type_t,
        Places,
        *mut c_void,
        usize,
    ) -> sys::ggml_backend_buffer_t;

    let mut type_places = table();
    let buft: sys::ggml_backend_buffer_type_t = type_places.as_mut_ptr().cast();
    #[repr(C)]
    struct Stream {
        guid: sys::ggml_guid_t,
        places: [*const c_void; PLACES],
    }
    let mut stream = Stream {
        guid: std::ptr::null_mut(),
        places: table(),
    };
    let backend: sys::ggml_backend_t = (&raw mut stream).cast();
    let mut context = 0u64;
    let context: *mut c_void = (&raw mut context).cast();
    // SAFETY: as in `device`. A struct of more than two words is passed in memory by the C ABIs of this platform,
    // and the callee reads the front of it, as long as its own struct is: no argument behind it is in memory. The
    // buffer is the host's and freed by it. `ggml_backend_buffer` has eleven words or more before its end (nine
    // functions, buffer type, context), and all the versions have its context among the first sixteen: the smallest
    // has 13 words, of which the last two are size and usage.
    unsafe {
        let buffer_type = [
            called(|| _ = (host.ggml_backend_buft_get_alignment)(buft)),
            called(|| _ = (host.ggml_backend_buft_get_max_size)(buft)),
            called(|| _ = (host.ggml_backend_buft_is_host)(buft)),
            place_of((host.ggml_backend_buft_get_device)(buft).cast()),
        ];
        let backend = [
            called(|| _ = (host.ggml_backend_name)(backend)),
            called(|| (host.ggml_backend_free)(backend)),
            called(|| (host.ggml_backend_synchronize)(backend)),
            called(|| {
                _ = (host.ggml_backend_graph_compute_async)(backend, std::ptr::null_mut());
            }),
            place_of((host.ggml_backend_get_device)(backend).cast()),
        ];
        let init = std::mem::transmute::<
            unsafe extern "C" fn(
                sys::ggml_backend_buffer_type_t,
                sys::ggml_backend_buffer_i,
                *mut c_void,
                usize,
            ) -> sys::ggml_backend_buffer_t,
            Init,
        >(host.ggml_backend_buffer_init);
        let buffer = init(buft, Places(table()), context, 4096);
        let base = called(|| _ = (host.ggml_backend_buffer_get_base)(buffer));
        let init_tensor = called(|| {
            _ = (host.ggml_backend_buffer_init_tensor)(buffer, std::ptr::null_mut());
        });
        let clear = called(|| (host.ggml_backend_buffer_clear)(buffer, 0));
        let reset = called(|| (host.ggml_backend_buffer_reset)(buffer));
        let words = buffer.cast::<*mut c_void>();
        let buffer_context = if (host.ggml_backend_buffer_get_type)(buffer) == buft
            && (host.ggml_backend_buffer_get_size)(buffer) == 4096
        {
            (0..13)
                .find(|i| *words.add(*i) == context)
                .unwrap_or(usize::MAX)
        } else {
            usize::MAX
        };
        let free = called(|| (host.ggml_backend_buffer_free)(buffer));
        Positions {
            buffer_type,
            buffer: [free, base, init_tensor, clear, reset],
            buffer_context,
            backend,
        }
    }
}

/// Compares tensors that the host makes with our struct, and reads off the host's numbers.
///
/// # Errors
/// They differ.
pub fn numbers(host: &Symbols) -> Result<Numbers, Error> {
    // SAFETY: ggml's functions are called as its header says, with a context that has room for the few tensors and
    // the graph; tensors are read after their size was found to be that of our struct, and before the context goes.
    unsafe {
        // A tensor is an object's header and the struct, and headers are as large as in every version so far.
        if (host.ggml_tensor_overhead)() != size_of::<sys::ggml_tensor>() + OBJECT {
            return Err(Error::Tensor("its size"));
        }
        let context = (host.ggml_init)(sys::ggml_init_params {
            mem_size: (host.ggml_tensor_overhead)() * 16 + (host.ggml_graph_overhead)() + 4096,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        });
        if context.is_null() {
            return Err(Error::NoTensor);
        }
        let result = compare(host, context);
        (host.ggml_free)(context);
        result
    }
}

/// `sizeof(struct ggml_object)`: offset, size, next, type and padding.
const OBJECT: usize = 32;

/// # Safety
/// `context` is a ggml context without allocation that has room for 16 tensors and a graph.
unsafe fn compare(host: &Symbols, context: *mut sys::ggml_context) -> Result<Numbers, Error> {
    // SAFETY: see the function's contract; tensors are checked for null before they are read.
    unsafe {
        let (f32, i32) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_I32);
        for (id, name) in [(f32, c"f32"), (i32, c"i32")] {
            let found = (host.ggml_type_name)(id);
            if found.is_null() || CStr::from_ptr(found) != name {
                return Err(Error::Tensor("the numbers of its types"));
            }
        }
        let w = (host.ggml_new_tensor_3d)(context, f32, 64, 6, 4);
        let x = (host.ggml_new_tensor_3d)(context, f32, 64, 1, 3);
        let ids = (host.ggml_new_tensor_2d)(context, i32, 2, 3);
        if w.is_null() || x.is_null() || ids.is_null() {
            return Err(Error::NoTensor);
        }
        let y = (host.ggml_mul_mat_id)(context, w, x, ids);
        let m = (host.ggml_new_tensor_2d)(context, f32, 64, 6);
        let n = (host.ggml_new_tensor_2d)(context, f32, 64, 5);
        if y.is_null() || m.is_null() || n.is_null() {
            return Err(Error::NoTensor);
        }
        let mul_mat = (host.ggml_mul_mat)(context, m, n);
        let view = (host.ggml_view_2d)(context, m, 64, 2, 256, 512);
        let reshape = (host.ggml_reshape_2d)(context, m, 32, 12);
        let permute = (host.ggml_permute)(context, m, 1, 0, 2, 3);
        let transpose = (host.ggml_transpose)(context, m);
        for t in [mul_mat, view, reshape, permute, transpose] {
            if t.is_null() {
                return Err(Error::NoTensor);
            }
        }
        let check = |ok: bool, what| if ok { Ok(()) } else { Err(Error::Tensor(what)) };
        check((*w).type_ == f32 && (*ids).type_ == i32, "type")?;
        check((*w).ne == [64, 6, 4, 1], "ne")?;
        check((*w).nb == [4, 256, 1536, 6144], "nb")?;
        check((host.ggml_nbytes)(w) == 6144, "bytes")?;
        check((*y).ne == [6, 2, 3, 1] && (*y).type_ == f32, "a result")?;
        check((&(*y).src)[..4] == [w, x, ids, std::ptr::null_mut()], "src")?;
        check((*w).buffer.is_null() && (*w).data.is_null(), "buffer")?;
        check(
            (*view).view_src == m && (*view).view_offs == 512,
            "view_src",
        )?;
        (*w).data = (&raw mut *w).cast();
        check((host.ggml_get_data)(w) == (*w).data, "data")?;
        (*w).data = std::ptr::null_mut();
        (host.ggml_set_name)(w, c"a probe".as_ptr());
        check(
            std::ptr::eq((host.ggml_get_name)(w), (&raw const (*w).name).cast()),
            "name",
        )?;
        check(CStr::from_ptr((*w).name.as_ptr()) == c"a probe", "name")?;
        for (tensor, name) in [
            (w, c"NONE"),
            (view, c"VIEW"),
            (reshape, c"RESHAPE"),
            (permute, c"PERMUTE"),
            (transpose, c"TRANSPOSE"),
            (mul_mat, c"MUL_MAT"),
            (y, c"MUL_MAT_ID"),
        ] {
            // Of a struct that was compared field by field, so it is the number of a real operation.
            let found = (host.ggml_op_name)((*tensor).op);
            check(!found.is_null() && CStr::from_ptr(found) == name, "op")?;
        }
        let graph = (host.ggml_new_graph)(context);
        if graph.is_null() {
            return Err(Error::NoTensor);
        }
        (host.ggml_build_forward_expand)(graph, y);
        check(
            (host.ggml_graph_n_nodes)(graph) == 1 && (host.ggml_graph_node)(graph, 0) == y,
            "graph",
        )?;
        Ok(Numbers {
            none: (*w).op,
            view: (*view).op,
            reshape: (*reshape).op,
            permute: (*permute).op,
            transpose: (*transpose).op,
            mul_mat: (*mul_mat).op,
            mul_mat_id: (*y).op,
            f32,
            i32,
            marks_computed: (*y).flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32 != 0,
        })
    }
}
