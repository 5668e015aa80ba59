//! The mixed container: how the experts of one merged tensor lie in that tensor's bytes, each in a quantization
//! type of its own. `docs/mixed-container.md` describes the form and why it is as it is.
//!
//! ```text
//! 0   8  magic "MOQAMIX1"          40  8  bytes of header and experts' blocks together
//! 8   4  version, 1                48  8  checksum of the header with this field zero
//! 12  4  n_expert                  56  8  zero
//! 16  8  n_in, values of a row     64  16 n_expert  an entry an expert:
//! 24  8  n_out, rows of an expert           0  4  type id as GGUF files store it
//! 32  4  header bytes                       4  4  bytes of a row
//! 36  4  alignment, 64                      8  8  offset of the expert from the start of the tensor
//! ```
//! All numbers are little-endian. The header ends with zeros at a multiple of 64, and so does every expert.
//!
//! A GGUF file gives the tensor some ggml type of the right size, so nothing but these bytes tells it from an
//! ordinary one. Its last 64 bytes are therefore a seal that repeats what the header says: a reader that finds one
//! of the two knows that the other must be there, and damage to either is noticed ([`find`]).
//!
//! ```text
//! end - 64  8  magic "1XIMAQOM"                 end - 40  8  checksum that the header holds
//! end - 56  4  version, 1                       end - 32  8  bytes of the tensor, seal included
//! end - 52  4  n_expert                         end - 24  8  checksum of the seal with this field zero
//! end - 48  8  bytes of header and experts      end - 16  16 zero
//! ```

#![forbid(unsafe_code)]

pub mod stand_in;

/// The first bytes of a mixed tensor.
pub const MAGIC: [u8; 8] = *b"MOQAMIX1";
/// Version of the form.
pub const VERSION: u32 = 1;
/// Header and experts begin at multiples of this.
pub const ALIGNMENT: u64 = 64;

/// The first bytes of the seal at a mixed tensor's end.
pub const SEAL_MAGIC: [u8; 8] = *b"1XIMAQOM";
/// Bytes of the seal.
pub const SEAL_BYTES: u64 = 64;

const FIXED: u64 = 64;
const ENTRY: u64 = 16;

/// What a merged expert tensor is: `[n_in, n_out, n_expert]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Values of a row: input channels of an expert.
    pub n_in: u64,
    /// Rows of an expert: its output channels.
    pub n_out: u64,
    /// Experts.
    pub n_expert: u64,
}

/// Block of a quantization type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Values in a block.
    pub elems: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

/// Where an expert lies and in what type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    /// Type id as GGUF files store it.
    pub type_id: u32,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Bytes from the start of the tensor.
    pub offset: u64,
}

/// A mixed tensor's table of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensor.
    pub shape: Shape,
    /// In order.
    pub experts: Vec<Expert>,
    /// Bytes of header and experts, padding included: what the tensor must at least have.
    pub bytes: u64,
}

/// Why bytes are not a mixed tensor, or cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The tensor is shorter than its header says.
    #[error("the mixed tensor has {have} bytes and needs {need}")]
    Short { have: u64, need: u64 },
    /// The first bytes are others.
    #[error("not a mixed tensor: it does not begin with MOQAMIX1")]
    Magic,
    /// A version that is not known.
    #[error("version {0} of the mixed container; this program knows {VERSION}")]
    Version(u32),
    /// The header was damaged.
    #[error("the header of the mixed tensor is damaged: its checksum does not agree")]
    Checksum,
    /// The header is of another tensor.
    #[error("the mixed tensor is {found} and the model says {expected}")]
    OtherShape { found: String, expected: String },
    /// An expert's type is not known.
    #[error("expert {expert}: unknown quantization type {type_id}")]
    Type { expert: usize, type_id: u32 },
    /// A row does not hold whole blocks.
    #[error("expert {expert}: rows of {n_in} values do not fill blocks of {elems}")]
    Row {
        expert: usize,
        n_in: u64,
        elems: u64,
    },
    /// An entry contradicts the others or lies outside the tensor.
    #[error("expert {expert}: its entry is not valid ({what})")]
    Entry { expert: usize, what: &'static str },
    /// Header and seal do not agree, or one of them is gone.
    #[error("the mixed tensor is damaged: {0}")]
    Seal(&'static str),
    /// Sizes that no file has.
    #[error("the sizes of the mixed tensor are too large")]
    TooLarge,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {}, {}]", self.n_in, self.n_out, self.n_expert)
    }
}

/// Bytes of a header for so many experts.
pub fn header_bytes(n_expert: u64) -> u64 {
    (FIXED.saturating_add(ENTRY.saturating_mul(n_expert)))
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(u64::MAX)
}

/// Bytes that an expert of `shape` takes in a type, padding included; `None` if rows do not hold whole blocks.
pub fn expert_bytes(shape: Shape, block: Block) -> Option<u64> {
    row_bytes(shape, block)?
        .checked_mul(shape.n_out)?
        .checked_next_multiple_of(ALIGNMENT)
}

fn row_bytes(shape: Shape, block: Block) -> Option<u64> {
    if block.elems == 0 || !shape.n_in.is_multiple_of(block.elems) {
        return None;
    }
    (shape.n_in / block.elems).checked_mul(block.bytes)
}

/// Whether bytes begin as a mixed tensor does.
pub fn is_mixed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl Layout {
    /// Places experts of the types `type_ids` one after another; `block` knows the types.
    ///
    /// # Errors
    /// A type is unknown or does not fit the rows, or sizes overflow.
    pub fn new(
        shape: Shape,
        type_ids: &[u32],
        block: impl Fn(u32) -> Option<Block>,
    ) -> Result<Self, Error> {
        if type_ids.len() as u64 != shape.n_expert {
            return Err(Error::OtherShape {
                found: format!("{} experts", type_ids.len()),
                expected: shape.to_string(),
            });
        }
        let mut bytes = header_bytes(shape.n_expert);
        let mut experts = Vec::with_capacity(type_ids.len());
        for (expert, &type_id) in type_ids.iter().enumerate() {
            let block = block(type_id).ok_or(Error::Type { expert, type_id })?;
            let row = row_bytes(shape, block).ok_or(Error::Row {
                expert,
                n_in: shape.n_in,
                elems: block.elems,
            })?;
            experts.push(Expert {
                type_id,
                row_bytes: row,
                offset: bytes,
            });
            bytes = expert_bytes(shape, block)
                .and_then(|n| bytes.checked_add(n))
                .ok_or(Error::TooLarge)?;
        }
        Ok(Self {
            shape,
            experts,
            bytes,
        })
    }

    /// The header's bytes.
    pub fn to_header(&self) -> Vec<u8> {
        let length = header_bytes(self.shape.n_expert);
        let mut out = Vec::with_capacity(length as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.shape.n_expert as u32).to_le_bytes());
        out.extend_from_slice(&self.shape.n_in.to_le_bytes());
        out.extend_from_slice(&self.shape.n_out.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&(ALIGNMENT as u32).to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        for e in &self.experts {
            out.extend_from_slice(&e.type_id.to_le_bytes());
            out.extend_from_slice(&(e.row_bytes as u32).to_le_bytes());
            out.extend_from_slice(&e.offset.to_le_bytes());
        }
        out.resize(length as usize, 0);
        let sum = checksum(&out);
        out[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the header of a tensor of which the first bytes, at least the header, are given, and which has
    /// `tensor_bytes` in all. Nothing outside `tensor_bytes` is ever referred to by the result, and the layout is
    /// the one that [`Layout::new`] makes for the same types.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(
        bytes: &[u8],
        tensor_bytes: u64,
        shape: Shape,
        block: impl Fn(u32) -> Option<Block>,
    ) -> Result<Self, Error> {
        let header = header_bytes(shape.n_expert);
        if !is_mixed(bytes) {
            return Err(Error::Magic);
        }
        if (bytes.len() as u64) < header {
            return Err(Error::Short {
                have: bytes.len() as u64,
                need: header,
            });
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let found = Shape {
            n_expert: u32_at(bytes, 12).into(),
            n_in: u64_at(bytes, 16),
            n_out: u64_at(bytes, 24),
        };
        if found != shape {
            return Err(Error::OtherShape {
                found: found.to_string(),
                expected: shape.to_string(),
            });
        }
        let header = &bytes[..header as usize];
        let mut blank = header.to_vec();
        blank[CHECKSUM].fill(0);
        if checksum(&blank) != u64_at(header, CHECKSUM.start) {
            return Err(Error::Checksum);
        }
        let ids: Vec<u32> = header[FIXED as usize..]
            .chunks_exact(ENTRY as usize)
            .take(shape.n_expert as usize)
            .map(|entry| u32_at(entry, 0))
            .collect();
        // There is one layout for given types: whatever else the header says is wrong.
        let layout = Self::new(shape, &ids, block)?;
        let entries = header[FIXED as usize..].chunks_exact(ENTRY as usize);
        for (expert, (entry, e)) in entries.zip(&layout.experts).enumerate() {
            if u64::from(u32_at(entry, 4)) != e.row_bytes {
                let what = "bytes of a row";
                return Err(Error::Entry { expert, what });
            }
            if u64_at(entry, 8) != e.offset {
                let what = "offset";
                return Err(Error::Entry { expert, what });
            }
        }
        if u64_at(header, 40) != layout.bytes || layout.bytes > tensor_bytes {
            return Err(Error::Short {
                have: tensor_bytes,
                need: layout.bytes.max(u64_at(header, 40)),
            });
        }
        Ok(layout)
    }
}

impl Layout {
    /// Bytes that a tensor must at least have for header, experts and seal.
    pub fn sealed_bytes(&self) -> u64 {
        self.bytes.saturating_add(SEAL_BYTES)
    }

    /// The last bytes of a tensor of `tensor_bytes`, which has this layout.
    pub fn to_seal(&self, tensor_bytes: u64) -> [u8; SEAL_BYTES as usize] {
        let mut out = [0; SEAL_BYTES as usize];
        out[..8].copy_from_slice(&SEAL_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(self.shape.n_expert as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.to_header()[CHECKSUM]);
        out[32..40].copy_from_slice(&tensor_bytes.to_le_bytes());
        let sum = checksum(&out);
        out[SEAL_CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        out
    }
}

/// Of the 16 bytes of the two magics, how many make a tensor a mixed one, if a damaged one. Those of an ordinary
/// tensor are never so by chance: 8008 / 2^48 for random bytes. Neither magic alone, nor damage to half of both, can
/// make a mixed tensor pass for an ordinary one.
const MARK: usize = 6;

/// In how many places bytes begin as `magic` does.
fn same_bytes(bytes: &[u8], magic: [u8; 8]) -> usize {
    bytes.iter().zip(magic).filter(|(b, m)| **b == *m).count()
}

/// Whether a whole tensor is a mixed one: `Ok(None)` for an ordinary tensor, which has neither header nor seal, and
/// the layout of a mixed one. The experts' blocks are not looked at.
///
/// # Errors
/// The tensor has, in whole or in part, a header or a seal, and they are not both there, valid and of each other.
pub fn find(
    tensor: &[u8],
    shape: Shape,
    block: impl Fn(u32) -> Option<Block>,
) -> Result<Option<Layout>, Error> {
    let seal = tensor.len().checked_sub(SEAL_BYTES as usize);
    let seal = seal.map(|at| &tensor[at..]);
    if same_bytes(tensor, MAGIC) + seal.map_or(0, |s| same_bytes(s, SEAL_MAGIC)) < MARK {
        return Ok(None);
    }
    match (
        is_mixed(tensor),
        seal.is_some_and(|s| s.starts_with(&SEAL_MAGIC)),
    ) {
        (true, true) => {}
        (false, true) => {
            return Err(Error::Seal(
                "it ends as a mixed tensor does and does not begin as one",
            ));
        }
        (true, false) => {
            return Err(Error::Seal(
                "it begins as a mixed tensor does and does not end as one",
            ));
        }
        (false, false) => {
            return Err(Error::Seal(
                "it begins and ends nearly as a mixed tensor does",
            ));
        }
    }
    let layout = Layout::parse(tensor, tensor.len() as u64, shape, block)?;
    if layout.sealed_bytes() > tensor.len() as u64 {
        return Err(Error::Short {
            have: tensor.len() as u64,
            need: layout.sealed_bytes(),
        });
    }
    if seal != Some(layout.to_seal(tensor.len() as u64).as_slice()) {
        return Err(Error::Seal("its seal is not the one of its header"));
    }
    Ok(Some(layout))
}

const CHECKSUM: std::ops::Range<usize> = 48..56;
const SEAL_CHECKSUM: std::ops::Range<usize> = 40..48;

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        n_in: 512,
        n_out: 7,
        n_expert: 5,
    };

    fn block(id: u32) -> Option<Block> {
        match id {
            8 => Some(Block {
                elems: 32,
                bytes: 34,
            }),
            12 => Some(Block {
                elems: 256,
                bytes: 144,
            }),
            _ => None,
        }
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        let layout = Layout::new(SHAPE, &[8, 12, 12, 8, 8], block).unwrap();
        let header = layout.to_header();
        assert_eq!(header.len() as u64, header_bytes(5));
        assert_eq!(
            Layout::parse(&header, layout.bytes, SHAPE, block).unwrap(),
            layout
        );
        assert!(
            layout
                .experts
                .iter()
                .all(|e| e.offset.is_multiple_of(ALIGNMENT))
        );
        assert_eq!(layout.experts[1].offset - layout.experts[0].offset, 3840);
        assert!(Layout::parse(&header, layout.bytes - 1, SHAPE, block).is_err());
        assert!(Layout::parse(&header[..100], layout.bytes, SHAPE, block).is_err());
        let other = Shape { n_out: 8, ..SHAPE };
        assert!(Layout::parse(&header, layout.bytes, other, block).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let layout = Layout::new(SHAPE, &[8, 12, 12, 8, 8], block).unwrap();
        let header = layout.to_header();
        for bit in 0..header.len() * 8 {
            let mut damaged = header.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Layout::parse(&damaged, layout.bytes, SHAPE, block).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_sealed_tensor_is_found_and_any_damage_to_its_marks_is_noticed() {
        let layout = Layout::new(SHAPE, &[8, 12, 12, 8, 8], block).unwrap();
        let bytes = layout.sealed_bytes() + 100;
        let mut tensor = layout.to_header();
        tensor.resize((bytes - SEAL_BYTES) as usize, 7);
        assert!(find(&tensor, SHAPE, block).is_err(), "no seal");
        tensor.extend(layout.to_seal(bytes));
        assert_eq!(find(&tensor, SHAPE, block), Ok(Some(layout)));
        assert!(find(&tensor[..tensor.len() - 1], SHAPE, block).is_err());
        assert_eq!(find(&tensor[1..tensor.len() - 1], SHAPE, block), Ok(None));
        let header = 0..header_bytes(5) as usize;
        let seal = tensor.len() - SEAL_BYTES as usize..tensor.len();
        for at in header.chain(seal) {
            for bit in 0..8 {
                let mut damaged = tensor.clone();
                damaged[at] ^= 1 << bit;
                assert!(find(&damaged, SHAPE, block).is_err(), "byte {at}");
            }
        }
        for length in 0..200 {
            assert!(!matches!(
                find(&tensor[..length], SHAPE, block),
                Ok(Some(_))
            ));
        }
    }

    /// Damage of several bytes at once, other lengths and whole fields, at random: an error each time, or the layout
    /// that was written where nothing of header and seal changed.
    #[test]
    fn two_thousand_random_damages_are_noticed() {
        let layout = Layout::new(SHAPE, &[8, 12, 12, 8, 8], block).unwrap();
        let bytes = (layout.sealed_bytes() + 100) as usize;
        let mut tensor = layout.to_header();
        tensor.resize(bytes - SEAL_BYTES as usize, 7);
        tensor.extend(layout.to_seal(bytes as u64));
        let header = header_bytes(5) as usize;
        let marks: Vec<usize> = (0..header)
            .chain(bytes - SEAL_BYTES as usize..bytes)
            .collect();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % n
        };
        for round in 0..2000 {
            let mut damaged = tensor.clone();
            // From one byte up to a sector's beginning.
            let count = [1, 1, 2, 4, 16, 64][round % 6];
            let first = below(marks.len());
            for i in 0..count {
                let at = if round % 12 < 6 {
                    marks[(first + i) % marks.len()]
                } else {
                    marks[below(marks.len())]
                };
                damaged[at] = below(256) as u8;
            }
            let found = find(&damaged, SHAPE, block);
            if damaged == tensor {
                assert_eq!(found, Ok(Some(layout.clone())));
            } else {
                // Never an ordinary tensor: two magics do not go by chance, and with one of them gone it is damaged.
                assert!(found.is_err(), "round {round}: {found:?}");
            }
            // The header alone, as readers of files see it first, with a length that is not the tensor's.
            if damaged[..header] != tensor[..header] {
                let cut = below(header + 1);
                assert!(Layout::parse(&damaged[..cut], bytes as u64, SHAPE, block).is_err());
                assert!(Layout::parse(&damaged[..header], bytes as u64, SHAPE, block).is_err());
            }
        }
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let huge = Shape {
            n_in: 1 << 60,
            n_out: 1 << 60,
            n_expert: 1,
        };
        assert_eq!(Layout::new(huge, &[8], block), Err(Error::TooLarge));
        assert!(Layout::new(SHAPE, &[9, 8, 8, 8, 8], block).is_err());
        let odd = Shape { n_in: 96, ..SHAPE };
        assert!(matches!(
            Layout::new(odd, &[12, 8, 8, 8, 8], block),
            Err(Error::Row { expert: 0, .. })
        ));
    }
}
