//! The host's functions, found in the running process. Nothing of ggml is linked: a program that links
//! libggml-base has its functions in the global scope, and Python's extension modules keep theirs in objects loaded
//! with `RTLD_LOCAL`, which are asked one by one.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use ggml_backend_sys as sys;

/// Why the host's functions cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing in the process has ggml's functions.
    #[error(
        "no ggml with the function {0} in this process: is the program built with shared libraries?"
    )]
    Missing(&'static str),
    /// Two copies, and nothing says which one asks.
    #[error(
        "more than one ggml in this process, and no way to tell which one loads this library: {0}"
    )]
    Ambiguous(String),
}

macro_rules! symbols {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The host's functions that a backend needs.
        #[derive(Clone, Copy)]
        pub struct Symbols {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// ggml's log, which programs redirect; hosts without it get messages on the standard error stream.
            pub ggml_log_internal: Option<unsafe extern "C" fn(sys::ggml_log_level, *const c_char, ...)>,
            /// The kind of a gated linear unit and its name; hosts without them keep these operations.
            pub ggml_get_glu_op: Option<unsafe extern "C" fn(*const sys::ggml_tensor) -> sys::ggml_glu_op>,
            pub ggml_glu_op_name: Option<unsafe extern "C" fn(sys::ggml_glu_op) -> *const c_char>,
            /// Present from the versions that copy tensors in two dimensions on.
            pub has_2d: bool,
            /// Present from backend API 3 on.
            pub has_alloc_n: bool,
        }

        impl Symbols {
            fn resolve(find: &dyn Fn(&CStr) -> *mut c_void) -> Result<Self, Error> {
                $(let $name = find(literal(concat!(stringify!($name), "\0")));
                if $name.is_null() {
                    return Err(Error::Missing(stringify!($name)));
                })*
                let log = find(c"ggml_log_internal");
                // SAFETY: each address is that of the C function of this name, whose type `same_types` compares
                // with the header's; a null pointer is `None`.
                Ok(unsafe {
                    Self {
                        $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>($name),)*
                        ggml_log_internal: std::mem::transmute::<
                            *mut c_void,
                            Option<unsafe extern "C" fn(sys::ggml_log_level, *const c_char, ...)>,
                        >(log),
                        ggml_get_glu_op: std::mem::transmute::<
                            *mut c_void,
                            Option<unsafe extern "C" fn(*const sys::ggml_tensor) -> sys::ggml_glu_op>,
                        >(find(c"ggml_get_glu_op")),
                        ggml_glu_op_name: std::mem::transmute::<
                            *mut c_void,
                            Option<unsafe extern "C" fn(sys::ggml_glu_op) -> *const c_char>,
                        >(find(c"ggml_glu_op_name")),
                        has_2d: !find(c"ggml_backend_tensor_set_2d").is_null(),
                        has_alloc_n: !find(c"ggml_backend_buft_alloc_buffer_n").is_null(),
                    }
                })
            }

            /// Never called and never linked: the compiler compares the types above with the header's.
            #[allow(dead_code)]
            fn same_types(&mut self) {
                $(self.$name = sys::$name;)*
                self.ggml_get_glu_op = Some(sys::ggml_get_glu_op);
                self.ggml_glu_op_name = Some(sys::ggml_glu_op_name);
            }
        }
    };
}

symbols! {
    ggml_type_name: fn(sys::ggml_type) -> *const c_char;
    ggml_op_name: fn(sys::ggml_op) -> *const c_char;
    ggml_type_size: fn(sys::ggml_type) -> usize;
    ggml_blck_size: fn(sys::ggml_type) -> i64;
    ggml_nbytes: fn(*const sys::ggml_tensor) -> usize;
    ggml_tensor_overhead: fn() -> usize;
    ggml_graph_overhead: fn() -> usize;
    ggml_init: fn(sys::ggml_init_params) -> *mut sys::ggml_context;
    ggml_free: fn(*mut sys::ggml_context);
    ggml_set_name: fn(*mut sys::ggml_tensor, *const c_char) -> *mut sys::ggml_tensor;
    ggml_get_name: fn(*const sys::ggml_tensor) -> *const c_char;
    ggml_get_data: fn(*const sys::ggml_tensor) -> *mut c_void;
    ggml_new_tensor_2d: fn(*mut sys::ggml_context, sys::ggml_type, i64, i64) -> *mut sys::ggml_tensor;
    ggml_new_tensor_3d: fn(*mut sys::ggml_context, sys::ggml_type, i64, i64, i64) -> *mut sys::ggml_tensor;
    ggml_mul_mat: fn(*mut sys::ggml_context, *mut sys::ggml_tensor, *mut sys::ggml_tensor) -> *mut sys::ggml_tensor;
    ggml_mul_mat_id: fn(*mut sys::ggml_context, *mut sys::ggml_tensor, *mut sys::ggml_tensor, *mut sys::ggml_tensor) -> *mut sys::ggml_tensor;
    ggml_view_2d: fn(*mut sys::ggml_context, *mut sys::ggml_tensor, i64, i64, usize, usize) -> *mut sys::ggml_tensor;
    ggml_reshape_2d: fn(*mut sys::ggml_context, *mut sys::ggml_tensor, i64, i64) -> *mut sys::ggml_tensor;
    ggml_permute: fn(*mut sys::ggml_context, *mut sys::ggml_tensor, c_int, c_int, c_int, c_int) -> *mut sys::ggml_tensor;
    ggml_transpose: fn(*mut sys::ggml_context, *mut sys::ggml_tensor) -> *mut sys::ggml_tensor;
    ggml_new_graph: fn(*mut sys::ggml_context) -> *mut sys::ggml_cgraph;
    ggml_build_forward_expand: fn(*mut sys::ggml_cgraph, *mut sys::ggml_tensor);
    ggml_graph_n_nodes: fn(*mut sys::ggml_cgraph) -> c_int;
    ggml_graph_node: fn(*mut sys::ggml_cgraph, c_int) -> *mut sys::ggml_tensor;
    ggml_backend_buft_name: fn(sys::ggml_backend_buffer_type_t) -> *const c_char;
    ggml_backend_buft_get_alignment: fn(sys::ggml_backend_buffer_type_t) -> usize;
    ggml_backend_buft_get_max_size: fn(sys::ggml_backend_buffer_type_t) -> usize;
    ggml_backend_buft_is_host: fn(sys::ggml_backend_buffer_type_t) -> bool;
    ggml_backend_buft_get_device: fn(sys::ggml_backend_buffer_type_t) -> sys::ggml_backend_dev_t;
    ggml_backend_buffer_init: fn(sys::ggml_backend_buffer_type_t, sys::ggml_backend_buffer_i, *mut c_void, usize) -> sys::ggml_backend_buffer_t;
    ggml_backend_buffer_free: fn(sys::ggml_backend_buffer_t);
    ggml_backend_buffer_get_base: fn(sys::ggml_backend_buffer_t) -> *mut c_void;
    ggml_backend_buffer_get_size: fn(sys::ggml_backend_buffer_t) -> usize;
    ggml_backend_buffer_get_type: fn(sys::ggml_backend_buffer_t) -> sys::ggml_backend_buffer_type_t;
    ggml_backend_buffer_init_tensor: fn(sys::ggml_backend_buffer_t, *mut sys::ggml_tensor) -> sys::ggml_status;
    ggml_backend_buffer_clear: fn(sys::ggml_backend_buffer_t, u8);
    ggml_backend_buffer_reset: fn(sys::ggml_backend_buffer_t);
    ggml_backend_name: fn(sys::ggml_backend_t) -> *const c_char;
    ggml_backend_free: fn(sys::ggml_backend_t);
    ggml_backend_synchronize: fn(sys::ggml_backend_t);
    ggml_backend_graph_compute_async: fn(sys::ggml_backend_t, *mut sys::ggml_cgraph) -> sys::ggml_status;
    ggml_backend_get_device: fn(sys::ggml_backend_t) -> sys::ggml_backend_dev_t;
    ggml_backend_dev_name: fn(sys::ggml_backend_dev_t) -> *const c_char;
    ggml_backend_dev_description: fn(sys::ggml_backend_dev_t) -> *const c_char;
    ggml_backend_dev_memory: fn(sys::ggml_backend_dev_t, *mut usize, *mut usize);
    ggml_backend_dev_type: fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type;
    ggml_backend_dev_get_props: fn(sys::ggml_backend_dev_t, *mut sys::ggml_backend_dev_props);
    ggml_backend_dev_init: fn(sys::ggml_backend_dev_t, *const c_char) -> sys::ggml_backend_t;
    ggml_backend_dev_buffer_type: fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t;
    ggml_backend_dev_host_buffer_type: fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t;
    ggml_backend_dev_buffer_from_host_ptr: fn(sys::ggml_backend_dev_t, *mut c_void, usize, usize) -> sys::ggml_backend_buffer_t;
    ggml_backend_dev_supports_op: fn(sys::ggml_backend_dev_t, *const sys::ggml_tensor) -> bool;
    ggml_backend_dev_supports_buft: fn(sys::ggml_backend_dev_t, sys::ggml_backend_buffer_type_t) -> bool;
    ggml_backend_dev_offload_op: fn(sys::ggml_backend_dev_t, *const sys::ggml_tensor) -> bool;
    ggml_backend_dev_backend_reg: fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_reg_t;
    ggml_backend_reg_name: fn(sys::ggml_backend_reg_t) -> *const c_char;
    ggml_backend_reg_dev_count: fn(sys::ggml_backend_reg_t) -> usize;
    ggml_backend_reg_dev_get: fn(sys::ggml_backend_reg_t, usize) -> sys::ggml_backend_dev_t;
    ggml_backend_reg_get_proc_address: fn(sys::ggml_backend_reg_t, *const c_char) -> *mut c_void;
}

/// A registry's functions, which lie in another library (libggml) than the rest. A process can have several: Python's
/// wheels hold copies of a library under each of its names in place of links.
#[derive(Clone, Copy)]
pub struct Registry {
    pub ggml_backend_reg_count: unsafe extern "C" fn() -> usize,
    pub ggml_backend_reg_get: unsafe extern "C" fn(usize) -> sys::ggml_backend_reg_t,
}

impl Registry {
    fn resolve(find: &dyn Fn(&CStr) -> *mut c_void) -> Option<Self> {
        let (count, get) = (
            find(c"ggml_backend_reg_count"),
            find(c"ggml_backend_reg_get"),
        );
        if count.is_null() || get.is_null() {
            return None;
        }
        // SAFETY: the addresses of the C functions of these names, whose types `same_types` compares.
        Some(unsafe {
            Self {
                ggml_backend_reg_count: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn() -> usize,
                >(count),
                ggml_backend_reg_get: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(usize) -> sys::ggml_backend_reg_t,
                >(get),
            }
        })
    }

    #[allow(dead_code)]
    fn same_types(&mut self) {
        self.ggml_backend_reg_count = sys::ggml_backend_reg_count;
        self.ggml_backend_reg_get = sys::ggml_backend_reg_get;
    }
}

fn literal(text: &'static str) -> &'static CStr {
    CStr::from_bytes_until_nul(text.as_bytes()).unwrap_or_default()
}

/// A registry that an object of this process sees.
pub struct Seen {
    pub registry: Registry,
    /// Of the object; empty for the program.
    pub path: CString,
    /// Whether the object loads models: it is libllama, or has it inside or as a dependency.
    pub by_llama: bool,
}

/// The registries of this process, each from the side of every object that sees it.
pub fn registries() -> Vec<Seen> {
    program()
        .into_iter()
        .chain(loaded_objects())
        .filter_map(|object| {
            let find = object.lookup();
            Some(Seen {
                registry: Registry::resolve(&find)?,
                by_llama: !find(c"llama_model_load_from_file").is_null(),
                path: object.1.clone(),
            })
        })
        .collect()
}

/// Finds the host's functions: in the global scope, else in the one loaded object that has them.
///
/// # Errors
/// None has them all, or several do.
pub fn find() -> Result<(Symbols, Option<Registry>), Error> {
    let global = |name: &CStr| {
        // SAFETY: `name` ends with a zero byte.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
    };
    let objects = if global(c"ggml_backend_buffer_init").is_null() {
        loaded_objects()
    } else {
        Vec::new()
    };
    let symbols = match Symbols::resolve(&global) {
        Ok(symbols) => symbols,
        Err(error) => {
            let mut found: Vec<(Symbols, &CStr)> = Vec::new();
            for object in &objects {
                // An object's dependencies answer for it too: several objects give one copy of ggml.
                if let Ok(s) = Symbols::resolve(&object.lookup())
                    && found.iter().all(|(f, _)| {
                        f.ggml_backend_buffer_init as usize != s.ggml_backend_buffer_init as usize
                    })
                {
                    found.push((s, &object.1));
                }
            }
            match found.as_slice() {
                [] => return Err(error),
                [(symbols, _)] => *symbols,
                several => {
                    let names: Vec<_> = several.iter().map(|(_, n)| n.to_string_lossy()).collect();
                    return Err(Error::Ambiguous(names.join(", ")));
                }
            }
        }
    };
    let registry = Registry::resolve(&global).or_else(|| {
        objects
            .iter()
            .find_map(|object| Registry::resolve(&object.lookup()))
    });
    Ok((symbols, registry))
}

/// libgomp's (and libomp's) entry to a parallel region: function, its data, threads, flags.
pub type Parallel =
    unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// The OpenMP runtime that ggml's CPU backend uses, if it uses one: asked of the object that has `ggml_graph_compute`,
/// whose dependencies answer for it. There may be other copies of the runtime in a process, with other threads.
pub fn openmp_of_cpu_backend() -> Option<Parallel> {
    program()
        .into_iter()
        .chain(loaded_objects())
        .find_map(|object| {
            let [compute, parallel] =
                [c"ggml_graph_compute", c"GOMP_parallel"].map(object.lookup());
            if compute.is_null() || parallel.is_null() {
                return None;
            }
            // SAFETY: the runtime's function, whose type has been the same since GCC 4.9. The runtime stays loaded: its
            // threads run in it.
            Some(unsafe { std::mem::transmute::<*mut c_void, Parallel>(parallel) })
        })
}

/// A handle of an object of this process, given back when dropped.
struct Object(*mut c_void, CString);

impl Object {
    /// Looks a name up in the object and its dependencies.
    fn lookup(&self) -> impl Fn(&CStr) -> *mut c_void + '_ {
        // SAFETY: an open handle and a name that ends with a zero byte.
        |name| unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }
}

/// The program itself, with the global scope.
fn program() -> Option<Object> {
    // SAFETY: a null name is the program itself.
    let handle = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_LAZY) };
    (!handle.is_null()).then(|| Object(handle, CString::default()))
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the handle came from `dlopen` and is given back once.
        unsafe { libc::dlclose(self.0) };
    }
}

fn loaded_objects() -> Vec<Object> {
    unsafe extern "C" fn name_of(
        info: *mut libc::dl_phdr_info,
        _: usize,
        names: *mut c_void,
    ) -> c_int {
        // SAFETY: `dl_iterate_phdr` gives a valid record, whose name is null or a string, and hands on the pointer
        // to the vector below.
        unsafe {
            let name = (*info).dlpi_name;
            if !name.is_null() && *name != 0 {
                (*names.cast::<Vec<CString>>()).push(CStr::from_ptr(name).to_owned());
            }
        }
        0
    }
    let mut names: Vec<CString> = Vec::new();
    // SAFETY: the callback above has the right type and the vector outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(name_of), (&raw mut names).cast()) };
    names
        .into_iter()
        .filter_map(|name| {
            // SAFETY: a string; `RTLD_NOLOAD` opens only what is loaded, so no code runs.
            let handle =
                unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
            (!handle.is_null()).then_some(Object(handle, name))
        })
        .collect()
}
