//! Four or eight entries of a table at once: by `vpgather`, or one by one where that is faster, put together in registers
//! or in memory.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::Lookup;

/// [`Lookup`]'s ways as numbers, and one for none yet.
pub(super) const STORE: u8 = Lookup::Store as u8;
pub(super) const INSERT: u8 = Lookup::Insert as u8;
pub(super) const GATHER: u8 = Lookup::Gather as u8;
const UNKNOWN: u8 = 0;

static WAY: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The fastest way for types with tables, any for others. On Sapphire Rapids gathering makes decoding of types with tables
/// 1.1 to 1.35 times as fast; on processors whose microcode keeps gathers from leaking data it is several times slower. To
/// insert entries in registers takes twice as long there as to go through memory, and on Zen 5 less time. Found out by a
/// measurement of some microseconds, once. Results are the same.
#[inline(always)]
pub(super) fn way_for(table: bool) -> u8 {
    if !table {
        return INSERT;
    }
    match WAY.load(Relaxed) {
        UNKNOWN => find_out(),
        way => way,
    }
}

/// Chooses the way.
pub(crate) fn choose(way: Lookup) {
    WAY.store(way as u8, Relaxed);
}

#[cold]
fn find_out() -> u8 {
    let table: [u32; 512] = std::array::from_fn(|i| i as u32);
    let indices: [u8; 1024] = std::array::from_fn(|i| (i * 229) as u8);
    // SAFETY: only called by code for processors with AVX2.
    let gather = unsafe { fastest(|| gathered(&table, &indices)) };
    // SAFETY: as above.
    let insert = unsafe { fastest(|| inserted(&table, &indices)) };
    let store = fastest(|| stored(&table, &indices));
    let ways = [
        (gather, Lookup::Gather),
        (insert, Lookup::Insert),
        (store, Lookup::Store),
    ];
    let fastest = ways
        .into_iter()
        .min_by_key(|w| w.0)
        .map_or(Lookup::Insert, |w| w.1);
    choose(fastest);
    fastest as u8
}

fn fastest(mut f: impl FnMut() -> u32) -> Duration {
    let time = |_| {
        let start = Instant::now();
        black_box(f());
        start.elapsed()
    };
    (0..16).map(time).min().unwrap_or_default()
}

#[target_feature(enable = "avx2")]
fn gathered(table: &[u32; 512], indices: &[u8; 1024]) -> u32 {
    let mut sum = _mm256_setzero_si256();
    for eight in black_box(indices).as_chunks::<8>().0 {
        let index = _mm256_cvtepu8_epi32(super::lanes::load8(eight));
        sum = _mm256_xor_si256(sum, gather8(table, index));
    }
    _mm256_extract_epi32::<0>(sum) as u32
}

#[target_feature(enable = "avx2")]
fn inserted(table: &[u32; 512], indices: &[u8; 1024]) -> u32 {
    let mut sum = _mm256_setzero_si256();
    for eight in black_box(indices).as_chunks::<8>().0 {
        sum = _mm256_xor_si256(sum, insert8(table, eight));
    }
    _mm256_extract_epi32::<0>(sum) as u32
}

fn stored(table: &[u32; 512], indices: &[u8; 1024]) -> u32 {
    let mut all = [0u32; 8];
    for eight in black_box(indices).as_chunks::<8>().0 {
        let mut entries = [0u32; 8];
        for (entry, i) in entries.iter_mut().zip(eight) {
            *entry = table[usize::from(*i)];
        }
        // As kernels read them: as a vector.
        for (sum, entry) in all.iter_mut().zip(black_box(entries)) {
            *sum ^= entry;
        }
    }
    all[0]
}

/// The entries of eight numbers, of a table of at least 256.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn insert8<const N: usize>(table: &[u32; N], indices: &[u8; 8]) -> __m256i {
    const { assert!(N >= 256) };
    // Read as bytes; all at once they would have to be taken apart again.
    let at = |k: usize| table[usize::from(indices[k])] as i32;
    _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7))
}

/// The entries of the numbers in eight lanes. Of a number bits that the table's size, a power of two, does not have are
/// left out.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn gather8<const N: usize>(table: &[u32; N], index: __m256i) -> __m256i {
    const { assert!(N.is_power_of_two()) };
    let index = _mm256_and_si256(index, _mm256_set1_epi32(N as i32 - 1));
    // SAFETY: reads entries of the table.
    unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), index) }
}

/// The same of four lanes and entries of eight bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn gather4<const N: usize>(table: &[u64; N], index: __m128i) -> __m256i {
    const { assert!(N.is_power_of_two()) };
    let index = _mm_and_si128(index, _mm_set1_epi32(N as i32 - 1));
    // SAFETY: reads entries of the table.
    unsafe { _mm256_i32gather_epi64::<8>(table.as_ptr().cast(), index) }
}
