//! Results of experts times the weights that the router gives them: `output[:, slot, token] = input[:, slot, token] *
//! weights[0, slot, token]`, a product of floats for each value. Where the host has them written over the results of the
//! experts, the product of these does it ([`super::product::Product::weighted`]); this is for the other cases.

use super::rows::{Input, Output};

/// Why a node cannot be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("values, weights and results do not fit")]
pub struct Error;

/// Rows and their weights, by number of the row.
pub struct Weighing<'a> {
    pub input: Input<'a>,
    pub weights: Vec<f32>,
    pub output: Output<'a>,
}

impl<'a> Weighing<'a> {
    /// # Errors
    /// Shapes that do not fit.
    pub fn new(input: Input<'a>, weights: Vec<f32>, output: Output<'a>) -> Result<Self, Error> {
        let form = output.form();
        if input.form().ne != form.ne || form.n_values().is_none() || weights.len() != form.n_rows()
        {
            return Err(Error);
        }
        Ok(Self {
            input,
            weights,
            output,
        })
    }
}
