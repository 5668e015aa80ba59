//! Speed of every type: `cargo bench -p moqa-kernels [-- TYPE...]`, the path capped by `MOQA_ISA`; with
//! `--bench matmul -- --threads N` decoding alone, N threads at once, which share the memory.
//!
//! Decoding (few activations, all weights from memory) in bytes of weights read a second, beside a loop that only
//! reads. Prefill (many activations, an expert of 768 x 2048 from cache) in multiplications a second,
//! beside a loop of nothing but the path's int8 instruction. One thread. Runs are short, so that some of them are not
//! interrupted on a busy machine: prefill takes the best, reading and decoding the best quarter of pieces of the weights.

use std::{hint::black_box, ops::Range, sync::Barrier, thread, time::Instant};

use moqa_kernels::{Isa, Scratch, Type, Weights, matmul};

/// Bytes of weights for decoding: more than a core's caches.
const DECODE_BYTES: usize = 128 << 20;
/// Pieces that they are timed in.
const PIECE_BYTES: usize = 2 << 20;
const N_IN: usize = 2048;
const N_ROWS: usize = 768;

fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    (0..runs)
        .map(|_| seconds(&mut f))
        .fold(f64::INFINITY, f64::min)
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// The time that a quarter of them stay below.
fn quarter(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// Bytes a second of a loop that adds up a buffer.
fn read_speed(bytes: &[u8]) -> f64 {
    let times = (0..3)
        .flat_map(|_| bytes.chunks_exact(PIECE_BYTES).map(|p| seconds(|| read(p))))
        .collect();
    PIECE_BYTES as f64 / quarter(times)
}

/// Adds up a piece of memory.
fn read(piece: &[u8]) {
    // Four streams, which memory serves faster than one.
    let lines = black_box(piece).as_chunks::<64>().0;
    let streams: [_; 4] = std::array::from_fn(|i| &lines[i * lines.len() / 4..][..lines.len() / 4]);
    let mut sums = [0u64; 8];
    for i in 0..lines.len() / 4 {
        for stream in streams {
            for (sum, word) in sums.iter_mut().zip(stream[i].as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    black_box(sums);
}

/// Decoding with several threads at once, of which each has a part of the weights: bytes a second of all together, and as
/// a share of what as many threads read. Reading and decoding alternate, piece by piece, all threads at the same; the
/// best quarter of the times counts.
fn share_memory(isa: Isa, threads: usize, types: &[Type], data: &[u8], mxfp4: &[u8]) {
    println!("path {}, {threads} threads", isa.name());
    println!("type     reading GB/s   decoding, 1 token");
    for &ty in types {
        let data = if ty == Type::MXFP4 { mxfp4 } else { data };
        let row_bytes = ty.row_bytes(N_IN).unwrap();
        let rows = PIECE_BYTES / row_bytes;
        let bytes = rows * row_bytes;
        let start = Barrier::new(threads);
        let part = data.len() / threads / bytes * bytes;
        let work = |data: &[u8]| -> [Vec<f64>; 2] {
            let mut bench = Bench {
                isa,
                scratch: Scratch::new(),
                out: Vec::new(),
            };
            let pieces = || data.chunks_exact(2 * bytes).map(|two| two.split_at(bytes));
            let mut times = [Vec::new(), Vec::new()];
            for (first, second) in pieces().chain(pieces()) {
                start.wait();
                // Until all are through: what others still read, nobody has read yet.
                times[0].push(seconds(|| {
                    read(first);
                    start.wait();
                }));
                let decoded = bench.prepared(ty, second, rows, 1);
                start.wait();
                times[1].push(seconds(|| {
                    bench.multiply(&decoded, 0..rows);
                    start.wait();
                }));
            }
            times
        };
        let times = thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|t| scope.spawn(move || work(&data[t * part..][..part])))
                .collect();
            let times = work(&data[..part]);
            others.into_iter().for_each(|o| drop(o.join().unwrap()));
            times
        });
        let [reading, decoding] = times.map(|t| (threads * bytes) as f64 / quarter(t));
        println!(
            "{:8} {:12.2}   {:8.2} ({:3.0}%)",
            ty.name(),
            reading / 1e9,
            decoding / 1e9,
            100.0 * decoding / reading
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;

    const ROUNDS: usize = 20_000;

    #[target_feature(enable = "avx2")]
    pub fn maddubs(x: u8) -> (usize, i32) {
        let w = _mm256_set1_epi8(x as i8);
        let mut sums = [w; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_maddubs_epi16(*sum, w);
            }
        }
        let mut all = w;
        for sum in sums {
            all = _mm256_xor_si256(all, sum);
        }
        (ROUNDS * 12 * 32, _mm256_extract_epi32::<0>(all))
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub fn dpbusd256(x: u8) -> (usize, i32) {
        let w = _mm256_set1_epi8(x as i8);
        let mut sums = [w; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, w, w);
            }
        }
        let mut all = w;
        for sum in sums {
            all = _mm256_xor_si256(all, sum);
        }
        (ROUNDS * 12 * 32, _mm256_extract_epi32::<0>(all))
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn dpbusd512(x: u8) -> (usize, i32) {
        let w = _mm512_set1_epi32(i32::from(x));
        let mut sums = [w; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, w);
            }
        }
        let mut all = w;
        for sum in sums {
            all = _mm512_xor_si512(all, sum);
        }
        (ROUNDS * 12 * 64, _mm512_reduce_add_epi32(all))
    }
}

/// A loop of one instruction: its multiplications, and a result to look at.
#[cfg(target_arch = "x86_64")]
type Loop = fn(u8) -> (usize, i32);

/// The path's int8 instruction and its int8 multiplications a second; None where none was written.
fn peak_speed(isa: Isa) -> Option<(&'static str, f64)> {
    #[cfg(target_arch = "x86_64")]
    {
        let (name, f): (_, Loop) = match isa {
            // SAFETY: the path is available.
            Isa::Avx2 => ("vpmaddubsw ymm", |x| unsafe { peak::maddubs(x) }),
            // SAFETY: as above.
            Isa::AvxVnni => ("vpdpbusd ymm", |x| unsafe { peak::dpbusd256(x) }),
            // SAFETY: as above.
            Isa::Avx512Vnni => ("vpdpbusd zmm", |x| unsafe { peak::dpbusd512(x) }),
            _ => return None,
        };
        let mut macs = 0;
        let time = best(100, || {
            let (n, result) = f(black_box(3));
            black_box(result);
            macs = n;
        });
        Some((name, macs as f64 / time))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        None
    }
}

/// Bytes that are no hazard: random codes; scales are whatever they are.
fn random_bytes(n: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut out = Vec::with_capacity(n + 8);
    while out.len() < n {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        out.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    out.truncate(n);
    out
}

/// About normally distributed, as activations are at least: some kernels are faster where most are small.
fn usual_activations(t: usize) -> Vec<f32> {
    random_bytes(12 * N_IN * (t + 1))[12 * N_IN * t..]
        .chunks_exact(12)
        .map(|bytes| bytes.iter().map(|&b| f32::from(b) - 127.5).sum())
        .collect()
}

struct Prepared<'a> {
    weights: Weights<'a>,
    acts: Vec<u8>,
    act_rows: Vec<u32>,
}

struct Bench {
    isa: Isa,
    scratch: Scratch,
    out: Vec<f32>,
}

impl Bench {
    /// Weights and `tokens` activations for them.
    fn prepared<'a>(&self, ty: Type, data: &'a [u8], n_rows: usize, tokens: usize) -> Prepared<'a> {
        let form = ty.activation();
        let size = form.row_bytes(N_IN);
        let mut acts = vec![0; size * tokens];
        for (t, row) in acts.chunks_exact_mut(size).enumerate() {
            let values = usual_activations(t);
            form.quantize_row(self.isa, &values, row).unwrap();
        }
        Prepared {
            weights: Weights::new(ty, data, ty.row_bytes(N_IN).unwrap(), n_rows, N_IN).unwrap(),
            acts,
            act_rows: (0..tokens as u32).collect(),
        }
    }

    fn multiply(&mut self, of: &Prepared<'_>, rows: Range<usize>) {
        self.out.resize(rows.len() * of.act_rows.len(), 0.0);
        matmul(
            self.isa,
            &of.weights,
            rows,
            &of.acts,
            &of.act_rows,
            &mut self.out,
            &mut self.scratch,
        )
        .unwrap();
        black_box(&self.out);
    }

    /// Seconds of multiplications of groups of `rows` rows of `n_rows` with `tokens` activations.
    fn times(
        &mut self,
        ty: Type,
        data: &[u8],
        n_rows: usize,
        rows: usize,
        tokens: usize,
    ) -> Vec<f64> {
        let of = self.prepared(ty, data, n_rows, tokens);
        (0..n_rows / rows)
            .map(|i| seconds(|| self.multiply(&of, i * rows..(i + 1) * rows)))
            .collect()
    }
}

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut threads = 1;
    if let Some(at) = wanted.iter().position(|arg| arg == "--threads") {
        threads = wanted
            .get(at + 1)
            .and_then(|n| n.parse().ok())
            .filter(|n| *n > 0)
            .expect("--threads N");
        wanted.drain(at..at + 2);
    }
    wanted.retain(|arg| !arg.starts_with('-'));
    let types: Vec<Type> = Type::ALL
        .iter()
        .copied()
        .filter(|ty| wanted.is_empty() || wanted.iter().any(|name| name == ty.name()))
        .collect();
    let isa = Isa::detect();
    let data = random_bytes(DECODE_BYTES);
    let mxfp4 = {
        // Exponents as in models: sums of very small floats would be slow for another reason.
        let mut data = data.clone();
        data.iter_mut()
            .step_by(17)
            .for_each(|exponent| *exponent = 120);
        data
    };
    if threads > 1 {
        return share_memory(isa, threads, &types, &data, &mxfp4);
    }
    let read = read_speed(&data);
    let peak = peak_speed(isa);
    println!("path {}, reading {:.1} GB/s", isa.name(), read / 1e9);
    if let Some((name, speed)) = peak {
        println!("{name} alone {:.0} GMAC/s", speed / 1e9);
    }
    println!("         decode GB/s (of reading)            prefill GMAC/s (of the instruction)");
    println!(
        "type     1 token      2            4            8 tokens     16           64           256"
    );
    let mut bench = Bench {
        isa,
        scratch: Scratch::new(),
        out: Vec::new(),
    };
    for ty in types {
        let data = if ty == Type::MXFP4 { &mxfp4 } else { &data };
        let row_bytes = ty.row_bytes(N_IN).unwrap();
        let n_rows = DECODE_BYTES / row_bytes;
        print!("{:8}", ty.name());
        for tokens in [1, 2, 4] {
            // Slow paths get fewer rows, which still are more than the caches hold.
            let n_rows = if isa == Isa::Scalar {
                n_rows / 16
            } else {
                n_rows
            };
            let rows = PIECE_BYTES / row_bytes;
            let speed =
                (rows * row_bytes) as f64 / quarter(bench.times(ty, data, n_rows, rows, tokens));
            print!(" {:5.2} ({:3.0}%)", speed / 1e9, 100.0 * speed / read);
        }
        for tokens in [8, 16, 64, 256] {
            let runs = if isa == Isa::Scalar {
                1
            } else {
                (2048 / tokens).max(16)
            };
            let time = (0..runs)
                .map(|_| bench.times(ty, data, N_ROWS, N_ROWS, tokens)[0])
                .fold(f64::INFINITY, f64::min);
            let speed = (N_ROWS * N_IN * tokens) as f64 / time;
            match peak {
                Some((_, peak)) => print!(" {:5.1} ({:3.0}%)", speed / 1e9, 100.0 * speed / peak),
                None => print!(" {:5.1}       ", speed / 1e9),
            }
        }
        println!();
    }
}
