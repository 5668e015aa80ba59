//! Tensors that are described now and computed later, a few rows at a time.
//!
//! A [`Lazy`] is a view of stored tensors: transposing, slicing, reshaping, stacking and the like only change
//! how elements are found. Shapes are written as in the checkpoint, slowest dimension first.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::stored::{Element, Stored};

/// A dimension of the elements' place in storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dim {
    size: u64,
    stride: u64,
}

/// A tensor to be computed.
#[derive(Clone, Debug)]
pub struct Lazy(Kind);

#[derive(Clone, Debug)]
enum Kind {
    View(View),
    /// Tensors one after another along the first dimension.
    Joined {
        shape: Vec<u64>,
        parts: Vec<Lazy>,
    },
    /// A function of every value.
    Mapped {
        inner: Box<Lazy>,
        f: fn(f32) -> f32,
    },
    /// Columns divided by numbers of their own.
    Divided {
        inner: Box<Lazy>,
        divisors: Arc<Vec<f32>>,
    },
    Constant {
        shape: Vec<u64>,
        values: Arc<Vec<f32>>,
    },
}

/// A stored tensor seen through strides. Each axis is a list of dimensions, outermost first, so that an
/// axis whose elements are permuted needs no copy.
#[derive(Clone, Debug)]
struct View {
    stored: Arc<Stored>,
    axes: Vec<Vec<Dim>>,
    offset: u64,
}

fn axis_size(axis: &[Dim]) -> u64 {
    axis.iter().map(|d| d.size).product()
}

impl Lazy {
    /// A stored tensor as it is.
    pub fn stored(stored: Arc<Stored>) -> Lazy {
        let mut stride = 1;
        let mut axes: Vec<Vec<Dim>> = (stored.shape.iter().rev())
            .map(|&size| {
                let dim = Dim { size, stride };
                stride *= size;
                vec![dim]
            })
            .collect();
        axes.reverse();
        Lazy(Kind::View(View {
            stored,
            axes,
            offset: 0,
        }))
    }

    /// A vector of known values.
    pub fn constant(values: Vec<f32>) -> Lazy {
        Lazy(Kind::Constant {
            shape: vec![values.len() as u64],
            values: Arc::new(values),
        })
    }

    /// Stacks tensors of one shape along a new first dimension.
    ///
    /// # Errors
    /// There are none, or their shapes differ.
    pub fn stack(parts: Vec<Lazy>) -> Result<Lazy> {
        let first = parts.first().map(Lazy::shape).unwrap_or_default();
        for part in &parts {
            ensure!(
                part.shape() == first,
                "{}: shape {:?}, but its siblings have {first:?}",
                part.describe(),
                part.shape()
            );
        }
        ensure!(!parts.is_empty(), "no tensors to stack");
        let mut shape = vec![parts.len() as u64];
        shape.extend(first);
        Ok(Lazy(Kind::Joined { shape, parts }))
    }

    /// Joins tensors along their first dimension.
    ///
    /// # Errors
    /// There are none, or their other dimensions differ.
    pub fn concat(parts: Vec<Lazy>) -> Result<Lazy> {
        let mut shape = parts.first().map(Lazy::shape).unwrap_or_default();
        ensure!(!shape.is_empty(), "no tensors to join");
        shape[0] = 0;
        for part in &parts {
            let s = part.shape();
            ensure!(
                s.len() == shape.len() && s[1..] == shape[1..],
                "{}: shape {s:?} cannot be joined with its siblings",
                part.describe()
            );
            shape[0] += s[0];
        }
        Ok(Lazy(Kind::Joined { shape, parts }))
    }

    /// The tensor with `f` applied to every value.
    pub fn map(self, f: fn(f32) -> f32) -> Lazy {
        Lazy(Kind::Mapped {
            inner: Box::new(self),
            f,
        })
    }

    /// A matrix with each column divided by its Euclidean length plus 1e-7. The whole matrix is read now, a row
    /// at a time.
    ///
    /// # Errors
    /// It is no matrix or cannot be read.
    pub fn normalize_columns(self) -> Result<Lazy> {
        let [rows, cols] = self.shape()[..] else {
            bail!("{}: is no matrix", self.describe());
        };
        let mut row = vec![0f32; cols as usize];
        let mut squares = vec![0f64; cols as usize];
        for i in 0..rows {
            self.read(i * cols, &mut row)?;
            for (sum, v) in squares.iter_mut().zip(&row) {
                *sum += f64::from(*v).powi(2);
            }
        }
        let divisors = squares.iter().map(|s| s.sqrt() as f32 + 1e-7).collect();
        Ok(Lazy(Kind::Divided {
            inner: Box::new(self),
            divisors: Arc::new(divisors),
        }))
    }

    /// The shape, slowest dimension first.
    pub fn shape(&self) -> Vec<u64> {
        match &self.0 {
            Kind::View(v) => v.axes.iter().map(|a| axis_size(a)).collect(),
            Kind::Joined { shape, .. } | Kind::Constant { shape, .. } => shape.clone(),
            Kind::Mapped { inner, .. } | Kind::Divided { inner, .. } => inner.shape(),
        }
    }

    /// Elements.
    pub fn n_elems(&self) -> u64 {
        self.shape().iter().product()
    }

    /// The first stored tensor it is made from.
    pub fn origin(&self) -> Option<&Arc<Stored>> {
        match &self.0 {
            Kind::View(v) => Some(&v.stored),
            Kind::Joined { parts, .. } => parts.first()?.origin(),
            Kind::Mapped { inner, .. } | Kind::Divided { inner, .. } => inner.origin(),
            Kind::Constant { .. } => None,
        }
    }

    /// The file and the tensor it is made from, for messages.
    pub fn describe(&self) -> String {
        self.origin()
            .map_or_else(|| "a constant".to_owned(), |s| s.describe())
    }

    /// Rearranges, if this is a view of one stored tensor (or a function of such).
    fn with_view(self, f: impl FnOnce(View) -> Result<View>) -> Result<Lazy> {
        match self.0 {
            Kind::View(v) => Ok(Lazy(Kind::View(f(v)?))),
            Kind::Mapped { inner, f: map } => Ok(inner.with_view(f)?.map(map)),
            _ => bail!("{}: cannot be rearranged", self.describe()),
        }
    }

    fn check_axis(view: &View, axis: usize) -> Result<()> {
        ensure!(
            axis < view.axes.len(),
            "{}: has {} dimensions, too few for this model",
            view.stored.describe(),
            view.axes.len()
        );
        Ok(())
    }

    /// Exchanges two dimensions.
    ///
    /// # Errors
    /// The tensor lacks one of them.
    pub fn transpose(self, a: usize, b: usize) -> Result<Lazy> {
        self.with_view(|mut v| {
            Self::check_axis(&v, a.max(b))?;
            v.axes.swap(a, b);
            Ok(v)
        })
    }

    /// Every `step`-th element of `start..start + len * step` along a dimension.
    ///
    /// # Errors
    /// The dimension is shorter, or was permuted.
    pub fn slice(self, axis: usize, start: u64, len: u64, step: u64) -> Result<Lazy> {
        self.with_view(|mut v| {
            Self::check_axis(&v, axis)?;
            let size = axis_size(&v.axes[axis]);
            let [dim] = v.axes[axis].as_mut_slice() else {
                bail!(
                    "{}: a permuted dimension cannot be cut",
                    v.stored.describe()
                );
            };
            let last = len
                .checked_sub(1)
                .and_then(|n| n.checked_mul(step)?.checked_add(start));
            ensure!(
                step > 0 && last.is_none_or(|last| last < size),
                "{}: dimension {axis} has {size} elements, too few to cut {len} from {start} on",
                v.stored.describe()
            );
            v.offset += start * dim.stride;
            *dim = Dim {
                size: len,
                stride: dim.stride * step,
            };
            Ok(v)
        })
    }

    /// Cuts along a dimension into parts of the given sizes, which fill it.
    ///
    /// # Errors
    /// They do not fill it.
    pub fn split(self, axis: usize, sizes: &[u64]) -> Result<Vec<Lazy>> {
        let shape = self.shape();
        ensure!(
            shape.get(axis) == Some(&sizes.iter().sum::<u64>()),
            "{}: dimension {axis} of shape {shape:?} is not {}",
            self.describe(),
            sizes
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(" + ")
        );
        let mut start = 0;
        sizes
            .iter()
            .map(|&len| {
                let part = self.clone().slice(axis, start, len, 1);
                start += len;
                part
            })
            .collect()
    }

    /// The same elements in the same order under another shape.
    ///
    /// # Errors
    /// The number of elements differs, or the dimensions were rearranged so that no strides describe it.
    pub fn reshape(self, shape: &[u64]) -> Result<Lazy> {
        let (old, what) = (self.shape(), self.describe());
        ensure!(
            old.iter().product::<u64>() == shape.iter().product::<u64>(),
            "{what}: shape {old:?} does not hold {shape:?}"
        );
        self.with_view(|mut v| {
            let mut dims: Vec<Dim> = v.axes.concat();
            dims.retain(|d| d.size != 1);
            dims.reverse();
            let mut axes = Vec::new();
            for &size in shape {
                let mut left = size;
                let mut axis = Vec::new();
                while left > 1 {
                    let Some(dim) = dims.pop() else {
                        bail!("{what}: shape {old:?} cannot become {shape:?}");
                    };
                    if left.is_multiple_of(dim.size) {
                        axis.push(dim);
                        left /= dim.size;
                    } else if dim.size.is_multiple_of(left) {
                        // The outer part of the dimension belongs here, the inner part to the next.
                        let inner = dim.size / left;
                        axis.push(Dim {
                            size: left,
                            stride: dim.stride * inner,
                        });
                        dims.push(Dim {
                            size: inner,
                            stride: dim.stride,
                        });
                        left = 1;
                    } else {
                        bail!("{what}: shape {old:?} cannot become {shape:?}");
                    }
                }
                if axis.is_empty() {
                    axis.push(Dim { size, stride: 1 });
                }
                axes.push(axis);
            }
            v.axes = axes;
            Ok(v)
        })
    }

    /// Removes a dimension of size 1.
    ///
    /// # Errors
    /// The dimension is missing or larger.
    pub fn squeeze(self, axis: usize) -> Result<Lazy> {
        let mut shape = self.shape();
        ensure!(
            shape.get(axis) == Some(&1),
            "{}: dimension {axis} of shape {shape:?} is not 1",
            self.describe()
        );
        shape.remove(axis);
        self.reshape(&shape)
    }

    /// The first dimension reordered from the checkpoint's rotary layout (the halves of each head one after
    /// the other) to llama.cpp's (pairs side by side).
    ///
    /// # Errors
    /// The dimension is not `n_head` heads of even size.
    pub fn permute_rotary(self, n_head: u64) -> Result<Lazy> {
        let shape = self.shape();
        let rows = shape.first().copied().unwrap_or(0);
        ensure!(
            n_head > 0 && rows.is_multiple_of(2 * n_head),
            "{}: {rows} rows are not {n_head} heads of even size",
            self.describe()
        );
        let mut split = vec![n_head, 2, rows / n_head / 2];
        split.extend(&shape[1..]);
        self.reshape(&split)?.transpose(1, 2)?.reshape(&shape)
    }

    /// Reads `out.len()` values from element `start` on, in the order of the shape.
    ///
    /// # Errors
    /// The stored type is not one that can be read so.
    pub fn read<T: Element>(&self, start: u64, out: &mut [T]) -> Result<()>
    where
        Self: ReadAs<T>,
    {
        self.read_as(start, out)
    }

    fn read_parts<T: Element>(parts: &[Lazy], start: u64, out: &mut [T]) -> Result<()>
    where
        Self: ReadAs<T>,
    {
        let (mut skip, mut done) = (start, 0);
        for part in parts {
            let n = part.n_elems();
            if skip >= n {
                skip -= n;
                continue;
            }
            let take = ((n - skip) as usize).min(out.len() - done);
            part.read_as(skip, &mut out[done..done + take])?;
            skip = 0;
            done += take;
            if done == out.len() {
                return Ok(());
            }
        }
        bail!("read beyond the end of a tensor")
    }
}

/// Reading as one kind of value: numbers may be computed, bytes only moved.
pub trait ReadAs<T> {
    /// See [`Lazy::read`].
    fn read_as(&self, start: u64, out: &mut [T]) -> Result<()>;
}

impl ReadAs<f32> for Lazy {
    fn read_as(&self, start: u64, out: &mut [f32]) -> Result<()> {
        match &self.0 {
            Kind::View(v) => v.read(start, out),
            Kind::Joined { parts, .. } => Self::read_parts(parts, start, out),
            Kind::Mapped { inner, f } => {
                inner.read_as(start, out)?;
                out.iter_mut().for_each(|v| *v = f(*v));
                Ok(())
            }
            Kind::Divided { inner, divisors } => {
                inner.read_as(start, out)?;
                let first = start as usize % divisors.len().max(1);
                let columns = divisors.iter().cycle().skip(first);
                out.iter_mut().zip(columns).for_each(|(v, d)| *v /= d);
                Ok(())
            }
            Kind::Constant { values, .. } => {
                let at = start as usize;
                out.copy_from_slice(&values[at..at + out.len()]);
                Ok(())
            }
        }
    }
}

impl ReadAs<u8> for Lazy {
    fn read_as(&self, start: u64, out: &mut [u8]) -> Result<()> {
        match &self.0 {
            Kind::View(v) => v.read(start, out),
            Kind::Joined { parts, .. } => Self::read_parts(parts, start, out),
            _ => bail!("{}: packed bytes cannot be computed with", self.describe()),
        }
    }
}

/// The widest step between rows for which it pays to read what lies between them.
const MAX_GATHER: u64 = 8;

impl View {
    /// The dimensions with neighbours merged where they lie seamlessly; at least one.
    fn dims(&self) -> Vec<Dim> {
        let mut dims: Vec<Dim> = Vec::new();
        for dim in self.axes.iter().flatten().filter(|d| d.size != 1) {
            match dims.last_mut() {
                Some(last) if last.stride == dim.size * dim.stride => {
                    *last = Dim {
                        size: last.size * dim.size,
                        stride: dim.stride,
                    };
                }
                _ => dims.push(*dim),
            }
        }
        if dims.is_empty() {
            dims.push(Dim { size: 1, stride: 1 });
        }
        dims
    }

    fn read<T: Element>(&self, start: u64, out: &mut [T]) -> Result<()> {
        let dims = self.dims();
        let (inner, outer) = (dims[dims.len() - 1], &dims[..dims.len() - 1]);
        // Where row `row`, counted over the outer dimensions, starts, and its index in the last of these.
        let place = |mut row: u64| {
            let mut at = self.offset;
            let mut index = 0;
            for (i, d) in outer.iter().enumerate().rev() {
                at += (row % d.size) * d.stride;
                if i + 1 == outer.len() {
                    index = row % d.size;
                }
                row /= d.size;
            }
            (at, index)
        };
        let mut done = 0;
        while done < out.len() {
            let at = start + done as u64;
            let (row, col) = (at / inner.size, at % inner.size);
            let (base, index) = place(row);
            let left = (out.len() - done) as u64;
            let rest = &mut out[done..];
            if inner.stride == 1 {
                let n = (inner.size - col).min(left);
                T::decode(&self.stored, base + col, &mut rest[..n as usize])?;
                done += n as usize;
                continue;
            }
            let next = outer.last().copied().unwrap_or(Dim { size: 1, stride: 1 });
            let rows = (left / inner.size).min(next.size - index);
            if col == 0 && rows > 1 && next.stride <= MAX_GATHER && next.stride < inner.stride {
                // A transposed matrix: read along storage, write across.
                let mut run = vec![T::default(); ((rows - 1) * next.stride + 1) as usize];
                for c in 0..inner.size {
                    T::decode(&self.stored, base + c * inner.stride, &mut run)?;
                    for r in 0..rows {
                        rest[(r * inner.size + c) as usize] = run[(r * next.stride) as usize];
                    }
                }
                done += (rows * inner.size) as usize;
            } else {
                let n = (inner.size - col).min(left);
                for i in 0..n {
                    let from = base + (col + i) * inner.stride;
                    let slot = &mut rest[i as usize..=i as usize];
                    T::decode(&self.stored, from, slot)?;
                }
                done += n as usize;
            }
        }
        Ok(())
    }
}
