//! What a weight tensor's bytes are: experts of one type, or a mixed container in which each has its own.

use std::sync::OnceLock;

use moqa_kernels::{Type, Weights};
use moqa_mixed::{Block, Layout, Shape};

use super::unpacked::Unpacked;

/// Why a tensor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A mixed container that is damaged or of another tensor.
    #[error(transparent)]
    Mixed(#[from] moqa_mixed::Error),
    /// Rows of the type do not fit the shape.
    #[error("rows of {n_in} values do not hold whole blocks of {ty}")]
    Row { ty: &'static str, n_in: u64 },
    /// The bytes end before the last expert does.
    #[error("the tensor has {have} bytes and needs {need}")]
    Short { have: usize, need: usize },
    /// Sizes that no tensor has.
    #[error("the sizes of the tensor are too large")]
    TooLarge,
}

/// Where an expert lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ty: Type,
    row_bytes: usize,
    offset: usize,
}

/// The experts of a tensor `[n_in, n_out, n_expert]`: their types and places. A dense matrix is one expert.
#[derive(Debug)]
pub struct Experts {
    n_in: usize,
    n_out: usize,
    mixed: bool,
    places: Vec<Place>,
    bytes: usize,
    /// Where that was done or decided against, those whose types have tables, unpacked.
    unpacked: OnceLock<Option<Unpacked>>,
}

/// Blocks of a type by its number in files.
fn block(id: u32) -> Option<Block> {
    Type::from_id(id).map(|ty| Block {
        elems: ty.block_elems() as u64,
        bytes: ty.block_bytes() as u64,
    })
}

impl Experts {
    /// Finds out what a tensor of the host's type `ty` is. Only the ends of `bytes` are read.
    ///
    /// # Errors
    /// A mixed container that is not whole, or sizes that do not agree.
    pub fn find(ty: Type, shape: Shape, bytes: &[u8]) -> Result<Self, Error> {
        match moqa_mixed::find(bytes, shape, block)? {
            Some(layout) => Self::mixed(&layout, bytes.len()),
            None => Self::uniform(ty, shape, bytes.len()),
        }
    }

    /// A tensor of which all is of one type, in `have` bytes.
    ///
    /// # Errors
    /// Sizes that do not agree.
    pub fn uniform(ty: Type, shape: Shape, have: usize) -> Result<Self, Error> {
        let (n_in, n_out, n_expert) = sizes(shape)?;
        let row_bytes = ty.row_bytes(n_in).ok_or(Error::Row {
            ty: ty.name(),
            n_in: shape.n_in,
        })?;
        let expert_bytes = row_bytes.checked_mul(n_out).ok_or(Error::TooLarge)?;
        let need = expert_bytes.checked_mul(n_expert).ok_or(Error::TooLarge)?;
        if need > have {
            return Err(Error::Short { have, need });
        }
        let places = (0..n_expert).map(|e| Place {
            ty,
            row_bytes,
            offset: e * expert_bytes,
        });
        Ok(Self {
            n_in,
            n_out,
            mixed: false,
            places: places.collect(),
            bytes: need,
            unpacked: OnceLock::new(),
        })
    }

    fn mixed(layout: &Layout, have: usize) -> Result<Self, Error> {
        let (n_in, n_out, _) = sizes(layout.shape)?;
        let places = layout.experts.iter().enumerate().map(|(expert, e)| {
            let type_id = e.type_id;
            Ok(Place {
                ty: Type::from_id(type_id).ok_or(moqa_mixed::Error::Type { expert, type_id })?,
                row_bytes: usize::try_from(e.row_bytes).map_err(|_| Error::TooLarge)?,
                offset: usize::try_from(e.offset).map_err(|_| Error::TooLarge)?,
            })
        });
        let need = usize::try_from(layout.bytes).map_err(|_| Error::TooLarge)?;
        if need > have {
            return Err(Error::Short { have, need });
        }
        Ok(Self {
            n_in,
            n_out,
            mixed: true,
            places: places.collect::<Result<_, Error>>()?,
            bytes: need,
            unpacked: OnceLock::new(),
        })
    }

    /// Whether it is a mixed container.
    pub fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Values of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Rows of an expert.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Experts.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// The type of an expert.
    pub fn ty(&self, expert: usize) -> Type {
        self.places[expert].ty
    }

    /// Bytes of one of the expert's rows, unpacked if they are.
    pub fn row_bytes(&self, expert: usize) -> usize {
        let unpacked = self.unpacked().and_then(|u| u.row_bytes(expert));
        unpacked.unwrap_or(self.places[expert].row_bytes)
    }

    /// Has products use what `make` gives, if nobody has been asked yet.
    pub fn unpack(&self, make: impl FnOnce() -> Option<Unpacked>) {
        self.unpacked.get_or_init(make);
    }

    fn unpacked(&self) -> Option<&Unpacked> {
        self.unpacked.get()?.as_ref()
    }

    /// Bytes that the experts take, from the tensor's start.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An expert's weights in the tensor's bytes, or unpacked.
    ///
    /// # Errors
    /// `tensor` is shorter than what was looked at.
    pub fn weights<'a>(
        &'a self,
        tensor: &'a [u8],
        expert: usize,
    ) -> Result<Weights<'a>, moqa_kernels::Error> {
        let place = self.places[expert];
        let unpacked = self.unpacked();
        if let Some(weights) =
            unpacked.and_then(|u| u.weights(place.ty, expert, self.n_out, self.n_in))
        {
            return weights;
        }
        let data = tensor.get(place.offset..).unwrap_or_default();
        Weights::new(place.ty, data, place.row_bytes, self.n_out, self.n_in)
    }

    /// `q4_K`, or `mixed (12 q4_K, 4 q6_K)`.
    pub fn describe(&self) -> String {
        let mut counts: Vec<(Type, usize)> = Vec::new();
        for place in &self.places {
            match counts.iter_mut().find(|(ty, _)| *ty == place.ty) {
                Some((_, n)) => *n += 1,
                None => counts.push((place.ty, 1)),
            }
        }
        let parts: Vec<_> = counts
            .iter()
            .map(|(ty, n)| format!("{n} {}", ty.name()))
            .collect();
        match counts.as_slice() {
            [(ty, _)] if !self.mixed => ty.name().to_owned(),
            _ => format!("mixed ({})", parts.join(", ")),
        }
    }
}

fn sizes(shape: Shape) -> Result<(usize, usize, usize), Error> {
    let size = |n: u64| usize::try_from(n).map_err(|_| Error::TooLarge);
    Ok((size(shape.n_in)?, size(shape.n_out)?, size(shape.n_expert)?))
}
