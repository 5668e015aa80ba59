//! A checked view of a matrix of weights.

use std::ops::Range;

use crate::{Error, Type, error::at_least};

/// Rows of weights in memory: row `r` starts at byte `r * row_bytes`. Checked once, so that kernels need not.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    ty: Type,
    unpacked: bool,
    data: &'a [u8],
    /// From one row's beginning to the next.
    row_bytes: usize,
    /// Bytes of a row's blocks.
    len: usize,
    n_rows: usize,
    n_in: usize,
}

impl<'a> Weights<'a> {
    /// `n_rows` rows of `n_in` weights, each `row_bytes` after the one before. No alignment is needed.
    ///
    /// # Errors
    /// If `n_in` is not a whole number of blocks, rows would overlap, or `data` ends before the last row does.
    pub fn new(
        ty: Type,
        data: &'a [u8],
        row_bytes: usize,
        n_rows: usize,
        n_in: usize,
    ) -> Result<Self, Error> {
        Self::of(ty, false, data, row_bytes, n_rows, n_in)
    }

    /// The same of rows in the type's unpacked form, as [`crate::unpack_row`] writes them.
    ///
    /// # Errors
    /// As [`Weights::new`], or if the type has no such form.
    pub fn unpacked(
        ty: Type,
        data: &'a [u8],
        row_bytes: usize,
        n_rows: usize,
        n_in: usize,
    ) -> Result<Self, Error> {
        Self::of(ty, true, data, row_bytes, n_rows, n_in)
    }

    fn of(
        ty: Type,
        unpacked: bool,
        data: &'a [u8],
        row_bytes: usize,
        n_rows: usize,
        n_in: usize,
    ) -> Result<Self, Error> {
        let needed = match unpacked {
            false => ty.row_bytes(n_in),
            true => ty.unpacked_row_bytes(n_in),
        };
        let needed = needed.ok_or(Error::RowLength { ty, n_in })?;
        if row_bytes < needed {
            return Err(Error::RowStride { row_bytes, needed });
        }
        if n_rows > 0 {
            let total = row_bytes
                .checked_mul(n_rows - 1)
                .and_then(|start| start.checked_add(needed));
            at_least("weights", data.len(), total)?;
        }
        Ok(Weights {
            ty,
            unpacked,
            data,
            row_bytes,
            len: needed,
            n_rows,
            n_in,
        })
    }

    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Whether rows are in the type's unpacked form.
    pub fn is_unpacked(&self) -> bool {
        self.unpacked
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The blocks of row `r`, without what lies between it and the next.
    pub fn row(&self, r: usize) -> &'a [u8] {
        assert!(r < self.n_rows, "row {r} of {}", self.n_rows);
        &self.data[r * self.row_bytes..][..self.len]
    }

    pub(crate) fn check_rows(&self, rows: &Range<usize>) -> Result<(), Error> {
        if rows.start > rows.end || rows.end > self.n_rows {
            return Err(Error::Rows {
                start: rows.start,
                end: rows.end,
                n_rows: self.n_rows,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let data = [0u8; 288];
        assert!(Weights::new(Type::Q4_K, &data, 144, 2, 256).is_ok());
        assert!(Weights::new(Type::Q4_K, &data, 200, 1, 256).is_ok());
        assert_eq!(
            Weights::new(Type::Q4_K, &data, 145, 2, 256).unwrap_err(),
            Error::TooShort {
                what: "weights",
                has: 288,
                needed: 289
            }
        );
        assert!(Weights::new(Type::Q4_K, &data, 144, 3, 256).is_err());
        assert!(Weights::new(Type::Q4_K, &data, 143, 2, 256).is_err());
        assert!(Weights::new(Type::Q4_K, &data, 144, 2, 200).is_err());
        assert!(Weights::new(Type::Q4_K, &data, usize::MAX, 3, 256).is_err());
    }
}
