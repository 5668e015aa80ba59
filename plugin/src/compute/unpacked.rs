//! Experts of types with tables, brought into the form that is multiplied faster.

use std::sync::Mutex;

use moqa_kernels::{Isa, Type, Weights, unpack_row};

use super::Error;
use super::experts::Experts;
use crate::memory::Memory;
use crate::pool::{Pool, lock};

/// Rows in a task.
const ROWS: usize = 64;

/// The unpacked rows of some of a tensor's experts.
#[derive(Debug)]
pub struct Unpacked {
    /// By expert: bytes of a row, and where the first begins.
    places: Vec<Option<(usize, usize)>>,
    bytes: Memory,
}

/// Bytes that the unpacked rows of a tensor's experts take.
pub fn needed(experts: &Experts) -> usize {
    (0..experts.count())
        .filter_map(|e| row_bytes(experts, e))
        .fold(0, |sum, row| {
            sum.saturating_add(row.saturating_mul(experts.n_out()))
        })
}

/// Bytes of an expert's rows once they are unpacked; `None` if its type has no such form.
fn row_bytes(experts: &Experts, expert: usize) -> Option<usize> {
    experts.ty(expert).unpacked_row_bytes(experts.n_in())
}

impl Unpacked {
    /// Of the experts in `tensor`; `None` where there is no memory for it.
    ///
    /// # Errors
    /// Kernels refuse, or a task panics.
    pub fn new(
        experts: &Experts,
        tensor: &[u8],
        isa: Isa,
        pool: &mut Pool,
    ) -> Result<Option<Self>, Error> {
        let needed = needed(experts);
        let Some(mut bytes) = Memory::new(needed) else {
            return Ok(None);
        };
        let (mut places, mut offset) = (Vec::new(), 0);
        let mut tasks = Vec::new();
        let mut rest = &mut bytes[..];
        for expert in 0..experts.count() {
            let row = row_bytes(experts, expert).filter(|row| *row > 0);
            places.push(row.map(|row| (row, offset)));
            let Some(row) = row else { continue };
            let weights = experts
                .weights(tensor, expert)
                .map_err(|error| kernel(&error))?;
            let own;
            (own, rest) = rest.split_at_mut(row * experts.n_out());
            offset += own.len();
            let pieces = own.chunks_mut(ROWS * row).enumerate();
            tasks.extend(pieces.map(|(i, piece)| Mutex::new((weights, i * ROWS, row, piece))));
        }
        let failure = Mutex::new(None);
        pool.run(tasks.len(), false, &|_, numbers| {
            for number in numbers {
                let (weights, first, row, piece) = &mut *lock(&tasks[number]);
                for (r, out) in piece.chunks_exact_mut(*row).enumerate() {
                    let packed = weights.row(*first + r);
                    if let Err(error) = unpack_row(isa, weights.ty(), packed, out) {
                        lock(&failure).get_or_insert(kernel(&error));
                    }
                }
            }
        })?;
        drop(tasks);
        match failure.into_inner().unwrap_or_default() {
            Some(error) => Err(error),
            None => Ok(Some(Self { places, bytes })),
        }
    }

    /// Bytes of an expert's rows; `None` if they were not unpacked.
    pub fn row_bytes(&self, expert: usize) -> Option<usize> {
        self.places[expert].map(|place| place.0)
    }

    /// The weights of an expert of type `ty`, `n_out` rows of `n_in`; `None` if they were not unpacked.
    pub fn weights(
        &self,
        ty: Type,
        expert: usize,
        n_out: usize,
        n_in: usize,
    ) -> Option<Result<Weights<'_>, moqa_kernels::Error>> {
        let (row, offset) = self.places[expert]?;
        let data = &self.bytes[offset..];
        Some(Weights::unpacked(ty, data, row, n_out, n_in))
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

fn kernel(error: &moqa_kernels::Error) -> Error {
    Error::Kernel {
        name: "unpacking".to_owned(),
        error: error.clone(),
    }
}
