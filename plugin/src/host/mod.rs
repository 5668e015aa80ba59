//! The program that loads this library: its functions, the layout of its backend ABI, its numbers.

pub mod abi;
pub mod probe;
pub mod symbols;

use std::ffi::CStr;
use std::sync::OnceLock;

use ggml_backend_sys as sys;
use moqa_kernels::Type;

use abi::Abi;
use probe::Numbers;
use symbols::Symbols;

/// A host that this library knows.
pub struct Host {
    pub symbols: Symbols,
    pub abi: Abi,
    pub numbers: Numbers,
}

static HOST: OnceLock<Result<Host, String>> = OnceLock::new();

/// The host, looked at once.
///
/// # Errors
/// Why it cannot be used, in words for its log.
pub fn host() -> Result<&'static Host, &'static str> {
    HOST.get_or_init(|| {
        let (symbols, registry) = symbols::find().map_err(|e| e.to_string())?;
        let abi = probe::layout(&symbols, registry).map_err(|e| e.to_string())?;
        let numbers = probe::numbers(&symbols).map_err(|e| e.to_string())?;
        Ok(Host {
            symbols,
            abi,
            numbers,
        })
    })
    .as_ref()
    .map_err(String::as_str)
}

impl Host {
    /// The type that the host means by a number, if it is one that the kernels multiply and of the same blocks.
    ///
    /// # Safety
    /// `id` is the type of one of the host's tensors: the host looks it up without a check.
    pub unsafe fn type_of(&self, id: sys::ggml_type) -> Option<Type> {
        // SAFETY: the caller's promise; names are constants of the host.
        unsafe {
            let name = (self.symbols.ggml_type_name)(id);
            if name.is_null() {
                return None;
            }
            let ty = Type::from_name(CStr::from_ptr(name).to_str().ok()?)?;
            let same = (self.symbols.ggml_type_size)(id) == ty.block_bytes()
                && (self.symbols.ggml_blck_size)(id) == ty.block_elems() as i64;
            same.then_some(ty)
        }
    }
}
