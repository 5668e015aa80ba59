//! A host's tensor, read safely.

use std::borrow::Cow;
use std::ffi::CStr;

use ggml_backend_sys as sys;
use moqa_kernels::Type;
use moqa_mixed::Shape;

use crate::compute::glu;
use crate::compute::rows::{self, Form, Input, Output};
use crate::host::Host;

/// A tensor that the host handed over for the length of a call.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    raw: &'a sys::ggml_tensor,
    host: &'static Host,
}

impl<'a> Tensor<'a> {
    /// Reads a tensor; `None` for a null pointer.
    ///
    /// # Safety
    /// A non-null `raw` is a tensor of this host, which stays, with its sources, as it is while the result lives.
    pub unsafe fn new(host: &'static Host, raw: *const sys::ggml_tensor) -> Option<Self> {
        // SAFETY: the caller's promise; `probe` compared the struct.
        unsafe { raw.as_ref() }.map(|raw| Self { raw, host })
    }

    fn related(&self, raw: *const sys::ggml_tensor) -> Option<Tensor<'a>> {
        // SAFETY: sources of a tensor that is as `new` was promised.
        unsafe { Self::new(self.host, raw) }
    }

    /// A source of the operation.
    pub fn src(&self, number: usize) -> Option<Tensor<'a>> {
        self.related(*self.raw.src.get(number)?)
    }

    /// The sources that there are.
    pub fn sources(&self) -> impl Iterator<Item = Tensor<'a>> {
        let tensor = *self;
        (0..self.raw.src.len()).map_while(move |n| tensor.src(n))
    }

    /// The tensor that this one is a view of, or itself.
    pub fn root(&self) -> Tensor<'a> {
        self.related(self.raw.view_src).unwrap_or(*self)
    }

    /// Whether this is a view.
    pub fn is_view(&self) -> bool {
        !self.raw.view_src.is_null()
    }

    /// The operation that computes it.
    pub fn op(&self) -> sys::ggml_op {
        self.raw.op
    }

    /// Whether the host wants this node to be computed.
    pub fn is_wanted(&self) -> bool {
        !self.host.numbers.marks_computed
            || self.raw.flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32 != 0
    }

    /// Its name.
    pub fn name(&self) -> Cow<'a, str> {
        // SAFETY: bytes of the same size.
        let bytes = unsafe { &*(&raw const self.raw.name).cast::<[u8; 64]>() };
        CStr::from_bytes_until_nul(bytes).map_or(Cow::Borrowed("?"), CStr::to_string_lossy)
    }

    /// The name of its operation.
    pub fn op_name(&self) -> Cow<'static, str> {
        // SAFETY: the number of a tensor's operation, and a name that is a constant of the host.
        unsafe {
            let name = (self.host.symbols.ggml_op_name)(self.raw.op);
            if name.is_null() {
                return Cow::Borrowed("?");
            }
            CStr::from_ptr(name).to_string_lossy()
        }
    }

    /// If it is a gated linear unit of a known kind: the kind, and whether gate and up are swapped in the rows of one
    /// source.
    pub fn glu(&self) -> Option<(glu::Kind, bool)> {
        let symbols = &self.host.symbols;
        let (kind_of, name_of) = (symbols.ggml_get_glu_op?, symbols.ggml_glu_op_name?);
        if self.op_name() != "GLU" {
            return None;
        }
        let [op, swapped, alpha, limit, ..] = self.raw.op_params;
        // SAFETY: the tensor is of this operation, for which the host reads and knows the number.
        let name = unsafe {
            // Parameters lie where our struct has them.
            if i64::from(kind_of(self.raw)) != i64::from(op) {
                return None;
            }
            let name = name_of(kind_of(self.raw));
            if name.is_null() {
                return None;
            }
            CStr::from_ptr(name).to_str().ok()?
        };
        let float = |bits: i32| f32::from_bits(bits.cast_unsigned());
        let kind = glu::Kind::from_name(name, float(alpha), float(limit))?;
        Some((kind, swapped != 0))
    }

    /// If it multiplies rows by a value each, as experts' results are weighted: those values, `[1, n_used, n_tokens]`.
    pub fn weighting(&self) -> Option<Tensor<'a>> {
        let (values, weights) = (self.src(0)?, self.src(1)?);
        let [_, rows @ ..] = self.raw.ne;
        let fits = self.op_name() == "MUL"
            && [*self, values, weights].iter().all(Tensor::is_f32)
            && values.raw.ne == self.raw.ne
            && weights.raw.ne[0] == 1
            && weights.raw.ne[1..] == rows;
        fits.then_some(weights)
    }

    /// Whether two are the same tensor.
    pub fn is(&self, other: Tensor<'_>) -> bool {
        std::ptr::eq(self.raw, other.raw)
    }

    /// Its type, if the kernels know it.
    pub fn ty(&self) -> Option<Type> {
        // SAFETY: the type of a tensor.
        unsafe { self.host.type_of(self.raw.type_) }
    }

    /// Whether it holds floats.
    pub fn is_f32(&self) -> bool {
        self.raw.type_ == self.host.numbers.f32
    }

    /// Whether it holds 32-bit integers.
    pub fn is_i32(&self) -> bool {
        self.raw.type_ == self.host.numbers.i32
    }

    /// Strides as ggml has them.
    pub fn nb(&self) -> [usize; 4] {
        self.raw.nb
    }

    /// Sizes and strides.
    ///
    /// # Errors
    /// Sizes that are none.
    pub fn form(&self) -> Result<Form, rows::Error> {
        Form::new(self.raw.ne, self.raw.nb)
    }

    /// Its shape as experts' weights; `None` with more dimensions or an empty one.
    pub fn shape(&self) -> Option<Shape> {
        let size = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
        let [n_in, n_out, n_expert, 1] = self.raw.ne else {
            return None;
        };
        Some(Shape {
            n_in: size(n_in)?,
            n_out: size(n_out)?,
            n_expert: size(n_expert)?,
        })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        // SAFETY: a tensor.
        unsafe { (self.host.symbols.ggml_nbytes)(self.raw) }
    }

    /// Where its data is; null before it is allocated.
    pub fn data(&self) -> *mut u8 {
        self.raw.data.cast()
    }

    /// Where its data is and how many bytes it takes.
    pub fn memory(&self) -> (usize, usize) {
        (self.data() as usize, self.bytes())
    }

    /// Whether it is a node that writes results.
    pub fn is_computed(&self) -> bool {
        let n = &self.host.numbers;
        self.is_wanted()
            && ![n.none, n.view, n.reshape, n.permute, n.transpose].contains(&self.op())
    }

    /// The buffer that its data is in; null before it is allocated.
    pub fn buffer(&self) -> sys::ggml_backend_buffer_t {
        self.root().raw.buffer
    }

    /// Its values, to read.
    ///
    /// # Errors
    /// It does not hold rows of floats.
    ///
    /// # Safety
    /// The data is the host's, allocated as the tensor says, and not written while the result lives.
    pub unsafe fn input(&self) -> Result<Input<'a>, rows::Error> {
        if !self.is_f32() {
            return Err(rows::Error::Strides);
        }
        // SAFETY: the caller's promise.
        unsafe { Input::new(self.data(), self.form()?) }
    }

    /// Its values, to write.
    ///
    /// # Errors
    /// It does not hold rows of floats that can be written.
    ///
    /// # Safety
    /// The data is the host's, allocated as the tensor says, and used by nobody else while the result lives.
    pub unsafe fn output(&self) -> Result<Output<'a>, rows::Error> {
        if !self.is_f32() {
            return Err(rows::Error::Strides);
        }
        // SAFETY: the caller's promise.
        unsafe { Output::new(self.data(), self.form()?) }
    }

    /// Its expert numbers, `[n_used, n_tokens]`.
    ///
    /// # Errors
    /// It does not hold them.
    ///
    /// # Safety
    /// The data is the host's and allocated as the tensor says.
    pub unsafe fn ids(&self) -> Result<Vec<i32>, rows::Error> {
        if !self.is_i32() || self.raw.ne[2] != 1 || self.raw.ne[3] != 1 {
            return Err(rows::Error::Strides);
        }
        // SAFETY: the caller's promise.
        unsafe { rows::read_ids(self.data(), self.form()?) }
    }
}
