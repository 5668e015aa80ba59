//! Tensor shapes and the entries of the tensor table.

use std::fmt;
use std::ops::Deref;

use super::types::GgmlType;

/// The most dimensions a tensor can have (`GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;
/// The longest tensor name in bytes: ggml's buffer of 64 less its terminator.
pub const MAX_NAME_BYTES: usize = 63;

/// The dimensions of a tensor, innermost (row length) first. Derefs to the slice of the dimensions
/// that the file states; [`Shape::ne`] gives 1 beyond them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    ne: [u64; MAX_DIMS],
    n_dims: u8,
}

impl Shape {
    /// A shape of at most [`MAX_DIMS`] dimensions; `None` if there are more.
    pub fn new(dims: &[u64]) -> Option<Shape> {
        let mut ne = [1; MAX_DIMS];
        ne.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(Shape {
            ne,
            n_dims: dims.len() as u8,
        })
    }

    /// Size of dimension `i`, 1 beyond the stated ones.
    pub fn ne(&self, i: usize) -> u64 {
        self.ne.get(i).copied().unwrap_or(1)
    }

    /// Rows: the product of all dimensions but the first. Saturates.
    pub fn n_rows(&self) -> u64 {
        self.ne[1..].iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Elements. Saturates.
    pub fn n_elems(&self) -> u64 {
        self.ne[0].saturating_mul(self.n_rows())
    }

    /// Bytes of a tensor of this shape and type, under ggml's rules: every dimension and the number
    /// of elements fit `i64`, a row is a whole number of blocks, the size fits. A dimension of zero
    /// is allowed, as in llama.cpp, and gives zero bytes. The error says which rule is broken.
    pub fn n_bytes(&self, ty: GgmlType) -> Result<u64, String> {
        const LIMIT: u64 = i64::MAX as u64;
        let mut n_elems: u64 = 1;
        for (i, &d) in self.ne.iter().enumerate() {
            if d > LIMIT {
                return Err(format!("dimension {i} is {d}, more than {LIMIT}"));
            }
            n_elems = n_elems
                .checked_mul(d)
                .filter(|&n| n <= LIMIT)
                .ok_or_else(|| format!("shape {self} has more than {LIMIT} elements"))?;
        }
        if !self.ne[0].is_multiple_of(ty.block_elems()) {
            return Err(format!(
                "rows of {} elements are not a multiple of the block of type {ty}, {} elements",
                self.ne[0],
                ty.block_elems()
            ));
        }
        ty.row_bytes(n_elems).ok_or_else(|| {
            format!(
                "shape {self} of type {ty} takes more than {} bytes",
                u64::MAX
            )
        })
    }
}

impl Deref for Shape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.ne[..usize::from(self.n_dims)]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self[..])
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tensor of an open file. Only the reader makes these, so the shape and type are known to be
/// consistent and the data to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, at most [`MAX_NAME_BYTES`] bytes, unique in the model.
    pub name: String,
    /// The dimensions, row length first.
    pub dims: Shape,
    /// The type.
    pub ty: GgmlType,
    /// Which of the model's files holds the data.
    pub part: usize,
    /// Where the data starts in that file's data section, in bytes.
    pub offset: u64,
    /// Where the data starts in that file, in bytes.
    pub file_offset: u64,
    pub(super) n_bytes: u64,
}

impl TensorInfo {
    /// Size of dimension `i`, 1 beyond the stated ones.
    pub fn ne(&self, i: usize) -> u64 {
        self.dims.ne(i)
    }

    /// Elements.
    pub fn n_elems(&self) -> u64 {
        self.dims.n_elems()
    }

    /// Rows: elements / `ne(0)`.
    pub fn n_rows(&self) -> u64 {
        self.dims.n_rows()
    }

    /// Bytes of data, padding not included.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// What a writer needs to store this tensor as it is.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            dims: self.dims,
            ty: self.ty,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, at most [`MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// The dimensions, row length first.
    pub dims: Shape,
    /// The type.
    pub ty: GgmlType,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[u64]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn shapes_count_elements_rows_and_bytes() {
        let s = shape(&[512, 3, 4]);
        assert_eq!((&s[..], s.ne(3), s.ne(9)), (&[512, 3, 4][..], 1, 1));
        assert_eq!((s.n_rows(), s.n_elems()), (12, 6144));
        assert_eq!(s.n_bytes(GgmlType::Q4_K), Ok(24 * 144));
        assert_eq!(shape(&[]).n_bytes(GgmlType::F32), Ok(4));
        assert_eq!(shape(&[256, 0, 8]).n_bytes(GgmlType::Q6_K), Ok(0));
        assert_eq!(Shape::new(&[1; 5]), None);
    }

    #[test]
    fn shapes_that_ggml_refuses_are_refused() {
        let bytes = |dims: &[u64], ty| shape(dims).n_bytes(ty);
        assert!(
            bytes(&[1 << 63], GgmlType::I8)
                .unwrap_err()
                .contains("dimension 0")
        );
        assert!(
            bytes(&[1 << 32, 1 << 32], GgmlType::I8)
                .unwrap_err()
                .contains("elements")
        );
        assert!(bytes(&[1 << 40, 1 << 40, 0], GgmlType::I8).is_err());
        assert!(
            bytes(&[1 << 62, 1], GgmlType::F64)
                .unwrap_err()
                .contains("bytes")
        );
        assert!(
            bytes(&[100, 2], GgmlType::Q8_0)
                .unwrap_err()
                .contains("multiple")
        );
    }
}
