//! A product of experts with activations, as rows: which activation row is multiplied by which expert, and where
//! its result goes. `MUL_MAT_ID` and `MUL_MAT` both become this.

use super::experts::Experts;
use super::rows::{Form, Input, Output};

/// Why a node cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its tensors do not fit each other.
    #[error("{0}")]
    Shape(&'static str),
    /// A token asks for an expert that there is not.
    #[error("expert {id} of {experts} for token {token}")]
    Expert {
        id: i32,
        experts: usize,
        token: usize,
    },
}

/// One row of activations and the row of results that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Number of the activation row, counted through all dimensions.
    pub input: u32,
    /// Number of the row of results, likewise.
    pub row: u32,
    /// Bytes from the start of the results.
    pub output: usize,
}

/// A product of the experts in `tensor` with rows of `input`.
pub struct Product<'a> {
    pub name: String,
    pub experts: &'a Experts,
    pub tensor: &'a [u8],
    pub input: Input<'a>,
    pub output: Output<'a>,
    /// By expert: the pairs `pairs[starts[e]..starts[e + 1]]`.
    pub pairs: Vec<Pair>,
    pub starts: Vec<usize>,
    /// What each row of results is multiplied by; empty for nothing.
    pub weights: Vec<f32>,
    /// Whether activations are rounded to int8 twice, the second time what the first has taken off.
    pub fine: bool,
}

impl<'a> Product<'a> {
    /// `MUL_MAT_ID`: `output[:, slot, token] = expert ids[slot, token] * input[:, slot % n, token]`, for `input`
    /// `[n_in, n, n_tokens]`, `ids` `[n_used, n_tokens]` and `output` `[n_out, n_used, n_tokens]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or an expert that there is not.
    pub fn by_ids(
        name: String,
        experts: &'a Experts,
        tensor: &'a [u8],
        input: Input<'a>,
        ids: &[i32],
        output: Output<'a>,
    ) -> Result<Self, Error> {
        let (i, o) = (input.form(), output.form());
        let ([n_in, n_slots, n_tokens, 1], [n_out, n_used, out_tokens, 1]) = (i.ne, o.ne) else {
            return Err(Error::Shape("more than three dimensions"));
        };
        if n_in != experts.n_in() || n_out != experts.n_out() {
            return Err(Error::Shape("rows that are not the weights'"));
        }
        if n_tokens != out_tokens || ids.len() != n_used.saturating_mul(n_tokens) {
            return Err(Error::Shape("not an expert for each slot and token"));
        }
        if ids.is_empty() {
            return Self::grouped(name, experts, tensor, input, output, &[]);
        }
        if n_slots == 0 || !n_used.is_multiple_of(n_slots) {
            return Err(Error::Shape("activations that do not go with the slots"));
        }
        let mut rows = Vec::with_capacity(ids.len());
        for (token, ids) in ids.chunks_exact(n_used).enumerate() {
            for (slot, &id) in ids.iter().enumerate() {
                let expert = usize::try_from(id).ok().filter(|e| *e < experts.count());
                let expert = expert.ok_or(Error::Expert {
                    id,
                    experts: experts.count(),
                    token,
                })?;
                rows.push((
                    expert,
                    token * n_slots + slot % n_slots,
                    o.row([slot, token, 0]),
                ));
            }
        }
        Self::grouped(name, experts, tensor, input, output, &rows)
    }

    /// `MUL_MAT`: the matrix of the highest dimensions of `input` and `output` is multiplied by the weight matrix of
    /// the same place, each of which serves equally many.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn dense(
        name: String,
        experts: &'a Experts,
        tensor: &'a [u8],
        input: Input<'a>,
        output: Output<'a>,
    ) -> Result<Self, Error> {
        let (i, o) = (input.form(), output.form());
        if i.ne[0] != experts.n_in() || o.ne[0] != experts.n_out() {
            return Err(Error::Shape("rows that are not the weights'"));
        }
        if i.ne[1..] != o.ne[1..] || i.n_values().is_none() || o.n_values().is_none() {
            return Err(Error::Shape("not a result for each row of activations"));
        }
        let [_, n1, n2, n3] = i.ne;
        if i.n_rows() == 0 {
            return Self::grouped(name, experts, tensor, input, output, &[]);
        }
        if experts.count() == 0 || !n2.is_multiple_of(experts.count()) {
            return Err(Error::Shape("matrices that the weights' do not divide"));
        }
        let each = n2 / experts.count();
        let mut rows = Vec::with_capacity(i.n_rows());
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    rows.push((i2 / each, (i3 * n2 + i2) * n1 + i1, o.row([i1, i2, i3])));
                }
            }
        }
        Self::grouped(name, experts, tensor, input, output, &rows)
    }

    /// Sorts `(expert, input row, output offset)` by expert, in their order.
    fn grouped(
        name: String,
        experts: &'a Experts,
        tensor: &'a [u8],
        input: Input<'a>,
        output: Output<'a>,
        rows: &[(usize, usize, usize)],
    ) -> Result<Self, Error> {
        if u32::try_from(input.form().n_rows().max(rows.len())).is_err() {
            return Err(Error::Shape("too many rows"));
        }
        if tensor.len() < experts.bytes() {
            return Err(Error::Shape("weights that end too early"));
        }
        let mut starts = vec![0; experts.count() + 1];
        for (expert, _, _) in rows {
            starts[expert + 1] += 1;
        }
        for e in 0..experts.count() {
            starts[e + 1] += starts[e];
        }
        let mut next = starts.clone();
        let mut pairs = vec![
            Pair {
                input: 0,
                row: 0,
                output: 0
            };
            rows.len()
        ];
        for (row, &(expert, input, output)) in rows.iter().enumerate() {
            // Checked above: there are fewer rows than `u32` counts.
            pairs[next[expert]] = Pair {
                input: input as u32,
                row: row as u32,
                output,
            };
            next[expert] += 1;
        }
        Ok(Self {
            name,
            experts,
            tensor,
            input,
            output,
            pairs,
            starts,
            weights: Vec::new(),
            fine: false,
        })
    }

    /// Multiplies each row of results by a weight, as `MUL` does afterwards.
    ///
    /// # Errors
    /// There is not a weight for each row.
    pub fn weighted(mut self, weights: Vec<f32>) -> Result<Self, Error> {
        if weights.len() != self.pairs.len() {
            return Err(Error::Shape("not a weight for each row of results"));
        }
        self.weights = weights;
        Ok(self)
    }

    /// Whether each row of the other product's results is of the same expert as this one's.
    pub fn goes_with(&self, other: &Self) -> bool {
        let alike = |(a, b): (&Pair, &Pair)| a.row == b.row;
        self.experts.n_out() == other.experts.n_out()
            && self.starts == other.starts
            && self.pairs.iter().zip(&other.pairs).all(alike)
    }

    /// Multiplications of numbers that it takes.
    pub fn multiplications(&self) -> u64 {
        let each = (self.experts.n_in() as u64).saturating_mul(self.experts.n_out() as u64);
        each.saturating_mul(self.pairs.len() as u64)
    }

    /// Bytes of weights that it reads.
    pub fn weight_bytes(&self) -> usize {
        let used = (0..self.experts.count()).filter(|e| !self.of(*e).is_empty());
        used.map(|e| self.experts.row_bytes(e) * self.experts.n_out())
            .sum()
    }

    /// Rows of weights that it reads.
    pub fn weight_rows(&self) -> usize {
        let used = (0..self.experts.count()).filter(|e| !self.of(*e).is_empty());
        used.count() * self.experts.n_out()
    }

    /// The pairs of an expert.
    pub fn of(&self, expert: usize) -> &[Pair] {
        &self.pairs[self.starts[expert]..self.starts[expert + 1]]
    }
}

/// Where row number `row` of a tensor begins, rows counted through all dimensions.
pub fn row_offset(form: Form, row: usize) -> usize {
    let [_, n1, n2, _] = form.ne;
    form.row([row % n1, row / n1 % n2, row / n1 / n2])
}
