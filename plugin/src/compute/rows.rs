//! Rows of floats in the host's memory: activations to read, results to write. Everything that is unsafe about
//! tensors' data is here.

use std::marker::PhantomData;

/// Why memory is not rows that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Strides that are no rows of floats, or overlap.
    #[error("its rows are laid out in a way that is not supported")]
    Strides,
    /// No memory.
    #[error("it has no data")]
    NoData,
    /// Sizes that no tensor has.
    #[error("its sizes are too large")]
    TooLarge,
}

/// Sizes and strides in bytes of a tensor, as ggml has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub ne: [usize; 4],
    pub nb: [usize; 4],
}

impl Form {
    /// From ggml's numbers.
    ///
    /// # Errors
    /// Negative sizes.
    pub fn new(ne: [i64; 4], nb: [usize; 4]) -> Result<Self, Error> {
        let mut out = [0; 4];
        for (to, from) in out.iter_mut().zip(ne) {
            *to = usize::try_from(from).map_err(|_| Error::TooLarge)?;
        }
        Ok(Self { ne: out, nb })
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.ne[1]
            .saturating_mul(self.ne[2])
            .saturating_mul(self.ne[3])
    }

    /// Values in all; `None` if they cannot be counted.
    pub fn n_values(&self) -> Option<usize> {
        self.ne.iter().try_fold(1usize, |n, e| n.checked_mul(*e))
    }

    /// Bytes from the first element to the end of the last, each of `size` bytes.
    fn span(&self, size: usize) -> Result<usize, Error> {
        if self.ne.contains(&0) {
            return Ok(0);
        }
        let last = self
            .ne
            .iter()
            .zip(self.nb)
            .try_fold(0usize, |sum, (n, stride)| {
                sum.checked_add((n - 1).checked_mul(stride)?)
            });
        last.and_then(|l| l.checked_add(size))
            .filter(|n| *n <= isize::MAX as usize)
            .ok_or(Error::TooLarge)
    }

    /// Where the row `[_, i1, i2, i3]` begins.
    pub fn row(&self, [i1, i2, i3]: [usize; 3]) -> usize {
        i1 * self.nb[1] + i2 * self.nb[2] + i3 * self.nb[3]
    }
}

/// Floats to read: rows that lie anywhere, values of a row one after another.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    data: &'a [u8],
    form: Form,
}

impl<'a> Input<'a> {
    /// A tensor of floats.
    ///
    /// # Errors
    /// It has no data or its rows are not contiguous.
    ///
    /// # Safety
    /// A non-null `data` is readable over the whole of the form and not written while the result lives.
    pub unsafe fn new(data: *const u8, form: Form) -> Result<Self, Error> {
        if form.nb[0] != size_of::<f32>() {
            return Err(Error::Strides);
        }
        let span = form.span(size_of::<f32>())?;
        if data.is_null() && span > 0 {
            return Err(Error::NoData);
        }
        // SAFETY: the caller's promise, for `span` bytes.
        let data = if span == 0 {
            &[]
        } else {
            unsafe { std::slice::from_raw_parts(data, span) }
        };
        Ok(Self { data, form })
    }

    /// Sizes and strides.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Whether two are the same memory, seen in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.data, other.data) && self.form == other.form
    }

    /// The `n` values from `offset` on: where they are, or in `copy` if floats cannot be read there.
    pub fn values<'v>(&'v self, offset: usize, n: usize, copy: &'v mut Vec<f32>) -> &'v [f32] {
        let bytes = &self.data[offset..offset + n * size_of::<f32>()];
        // SAFETY: any bytes are floats.
        if let ([], values, []) = unsafe { bytes.align_to() } {
            return values;
        }
        copy.clear();
        copy.extend(bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)));
        copy
    }
}

impl Input<'_> {
    /// The values of rows of one value, in the order of rows. `None` for longer rows or more than can be counted.
    pub fn singles(&self) -> Option<Vec<f32>> {
        let [1, n1, n2, n3] = self.form.ne else {
            return None;
        };
        let mut out = Vec::with_capacity(self.form.n_values()?);
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    let offset = self.form.row([i1, i2, i3]);
                    out.extend_from_slice(self.values(offset, 1, &mut Vec::new()));
                }
            }
        }
        Some(out)
    }
}

/// Expert numbers: `[n_used, n_tokens]`, laid out in any way.
///
/// # Errors
/// It has no data.
///
/// # Safety
/// A non-null `data` is readable over the whole of the form.
pub unsafe fn read_ids(data: *const u8, form: Form) -> Result<Vec<i32>, Error> {
    let count = form.n_values().ok_or(Error::TooLarge)?;
    let span = form.span(size_of::<i32>())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if data.is_null() {
        return Err(Error::NoData);
    }
    // SAFETY: the caller's promise, for `span` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data, span) };
    // Strides of zero make few bytes many numbers; ids have a row for each token, which the activations have too.
    let mut out = Vec::with_capacity(count);
    for t in 0..form.ne[1] {
        for slot in 0..form.ne[0] {
            let at = slot * form.nb[0] + t * form.nb[1];
            let id = bytes[at..at + 4].try_into().unwrap_or_default();
            out.push(i32::from_ne_bytes(id));
        }
    }
    Ok(out)
}

/// Results: rows that do not overlap, written by several threads, each its own part.
pub struct Output<'a> {
    data: *mut u8,
    span: usize,
    form: Form,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: `write` is the only access; its contract keeps threads from each other's values.
unsafe impl Sync for Output<'_> {}
// SAFETY: it is an exclusive reference to bytes.
unsafe impl Send for Output<'_> {}

impl Output<'_> {
    /// A tensor of floats.
    ///
    /// # Errors
    /// It has no data, or rows that are not contiguous or overlap.
    ///
    /// # Safety
    /// A non-null `data` is writable over the whole of the form and used by nobody else while the result lives.
    pub unsafe fn new(data: *mut u8, form: Form) -> Result<Self, Error> {
        let [n0, n1, n2, n3] = form.ne;
        let fits = |n: usize, stride: usize, next: usize| {
            n.checked_mul(stride).is_some_and(|end| end <= next)
        };
        // A dimension of one row may have any stride.
        let disjoint = form.nb[0] == size_of::<f32>()
            && (n1 <= 1 || fits(n0, form.nb[0], form.nb[1]))
            && (n2 <= 1 || fits(n1.max(1), form.nb[1], form.nb[2]))
            && (n3 <= 1 || fits(n2.max(1), form.nb[2], form.nb[3]));
        if !disjoint {
            return Err(Error::Strides);
        }
        let span = form.span(size_of::<f32>())?;
        if data.is_null() && span > 0 {
            return Err(Error::NoData);
        }
        Ok(Self {
            data,
            span,
            form,
            lifetime: PhantomData,
        })
    }

    /// Sizes and strides.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Whether this memory and the other's have bytes in common.
    pub fn overlaps(&self, data: *const u8, bytes: usize) -> bool {
        let (a, b) = (self.data as usize, data as usize);
        a < b.saturating_add(bytes) && b < a.saturating_add(self.span)
    }

    /// Writes values into the row that begins at `offset`, from its value `first` on.
    ///
    /// # Panics
    /// They lie outside the tensor.
    ///
    /// # Safety
    /// No other thread writes the same values at the same time.
    pub unsafe fn write(&self, offset: usize, first: usize, values: &[f32]) {
        let at = offset + first * size_of::<f32>();
        let end = at + size_of_val(values);
        assert!(end <= self.span, "a result outside its tensor");
        // SAFETY: inside the memory that `new` was promised, which is exclusively ours; the caller keeps threads
        // apart. Bytes are copied, so nothing needs to be aligned.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr().cast::<u8>(),
                self.data.add(at),
                size_of_val(values),
            );
        }
    }
}

impl Input<'_> {
    /// Its memory, for comparison with outputs.
    pub fn memory(&self) -> (*const u8, usize) {
        (self.data.as_ptr(), self.data.len())
    }
}
