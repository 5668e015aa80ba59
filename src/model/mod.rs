//! What each tensor of a model is: its role, its layer, how many experts it holds, and whether
//! llama.cpp lets it be quantized.

mod check;
mod digest;
mod name;
mod policy;
mod role;
mod view;

pub use self::check::check_runnable;
pub use self::digest::digest;
pub use self::name::layer_of;
pub use self::role::Role;
pub use self::view::{ModelSummary, ModelView, RoleSummary, TensorView};
