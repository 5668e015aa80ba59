//! What can be wrong with arguments.

use std::fmt;

use crate::Type;

/// Arguments that do not fit together. Nothing has been computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A row that is not a whole number of blocks.
    RowLength { ty: Type, n_in: usize },
    /// Rows that overlap.
    RowStride { row_bytes: usize, needed: usize },
    /// Fewer bytes or elements than the shape needs.
    TooShort {
        what: &'static str,
        has: usize,
        needed: usize,
    },
    /// Rows of the weights that do not exist.
    Rows {
        start: usize,
        end: usize,
        n_rows: usize,
    },
    /// An activation row that does not exist.
    ActivationRow { row: u32, n_rows: usize },
    /// A path that this processor does not have.
    Isa(crate::Isa),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::RowLength { ty, n_in } => {
                write!(
                    f,
                    "{n_in} weights are not a row of {} (blocks of {})",
                    ty.name(),
                    ty.block_elems()
                )
            }
            Error::RowStride { row_bytes, needed } => {
                write!(
                    f,
                    "rows of {needed} bytes cannot lie {row_bytes} bytes apart"
                )
            }
            Error::TooShort { what, has, needed } => {
                write!(f, "{what}: length {has}, needed {needed}")
            }
            Error::Rows { start, end, n_rows } => write!(f, "rows {start}..{end} of {n_rows}"),
            Error::ActivationRow { row, n_rows } => write!(f, "activation row {row} of {n_rows}"),
            Error::Isa(isa) => write!(f, "this processor cannot run the {} path", isa.name()),
        }
    }
}

impl std::error::Error for Error {}

/// `has >= needed`, or the error that says so.
pub(crate) fn at_least(what: &'static str, has: usize, needed: Option<usize>) -> Result<(), Error> {
    match needed {
        Some(needed) if has >= needed => Ok(()),
        _ => Err(Error::TooShort {
            what,
            has,
            needed: needed.unwrap_or(usize::MAX),
        }),
    }
}
