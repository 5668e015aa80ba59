//! What is fitted on the quantized model, at no cost in bytes: the scale of every expert's matrix, and the routers.
//!
//! A quantizer rounds each weight well and still leaves a matrix whose outputs are too large or too small as a whole,
//! because it weighs channels by their squares alone. Matching the energy of each expert's outputs to the original's
//! is one factor an expert and projection, which the blocks' scales take up.
//!
//! A router of a quantized model sees inputs that are slightly off, and sends tokens between two near-equal experts to
//! the other one. Those exchanges do more than the rounding itself. The routers are small and stay in floats: they are
//! fitted by ridge regression so that on the quantized model's inputs they say what the original's said, tokens near
//! such a tie counting most.

mod exchange;
mod judge;
mod measure;
mod router;
mod text;

pub use judge::{Judged, MeasuredFares};
pub use measure::{RefitOptions, Refitter};
pub use text::RefitText;
