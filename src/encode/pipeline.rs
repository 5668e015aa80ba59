//! Work in parallel, results in order, a bounded number of them in memory.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex};

use anyhow::Result;

struct State<T> {
    next: usize,
    delivered: usize,
    ready: BTreeMap<usize, std::thread::Result<Result<T>>>,
    stop: bool,
}

/// Computes `work(i)` for `0..n` on the threads of `pool` and hands the results to `deliver` on the calling
/// thread, which must not be one of the pool's, in order of `i`. At most `window` results exist at a time.
///
/// # Errors
/// The first error of `work` (in order) or of `deliver`; no further work is started after it.
pub fn ordered_parallel<T: Send>(
    pool: &rayon::ThreadPool,
    n: usize,
    window: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
    mut deliver: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let window = window.max(1);
    let state = Mutex::new(State {
        next: 0,
        delivered: 0,
        ready: BTreeMap::new(),
        stop: false,
    });
    let wake_workers = Condvar::new();
    let wake_writer = Condvar::new();
    let lock = || state.lock().unwrap_or_else(|e| e.into_inner());
    let worker = || {
        loop {
            let i = {
                let mut s = lock();
                loop {
                    if s.stop || s.next >= n {
                        return;
                    }
                    if s.next < s.delivered + window {
                        break;
                    }
                    s = wake_workers.wait(s).unwrap_or_else(|e| e.into_inner());
                }
                s.next += 1;
                s.next - 1
            };
            let result = catch_unwind(AssertUnwindSafe(|| work(i)));
            lock().ready.insert(i, result);
            wake_writer.notify_one();
        }
    };
    pool.in_place_scope(|scope| {
        for _ in 0..pool.current_num_threads() {
            scope.spawn(|_| worker());
        }
        let mut outcome = Ok(());
        for i in 0..n {
            let result = {
                let mut s = lock();
                loop {
                    if let Some(r) = s.ready.remove(&i) {
                        break r;
                    }
                    s = wake_writer.wait(s).unwrap_or_else(|e| e.into_inner());
                }
            };
            let step = match result {
                Ok(Ok(value)) => deliver(i, value),
                Ok(Err(e)) => Err(e),
                Err(panic) => {
                    lock().stop = true;
                    wake_workers.notify_all();
                    resume_unwind(panic);
                }
            };
            let mut s = lock();
            s.delivered = i + 1;
            if step.is_err() {
                s.stop = true;
            }
            drop(s);
            wake_workers.notify_all();
            if step.is_err() {
                outcome = step;
                break;
            }
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pool(n: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .unwrap()
    }

    #[test]
    fn results_come_in_order_and_bounded() {
        let alive = AtomicUsize::new(0);
        let peak = AtomicUsize::new(0);
        let mut seen = Vec::new();
        ordered_parallel(
            &pool(4),
            500,
            6,
            |i| {
                let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
                peak.fetch_max(now, Ordering::SeqCst);
                if i % 7 == 0 {
                    std::thread::yield_now();
                }
                Ok(i * 2)
            },
            |i, v| {
                alive.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(v, i * 2);
                seen.push(i);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(peak.load(Ordering::SeqCst) <= 7, "{peak:?}");
    }

    #[test]
    fn the_first_error_in_order_wins_and_work_stops() {
        let started = AtomicUsize::new(0);
        let err = ordered_parallel(
            &pool(3),
            1000,
            8,
            |i| {
                started.fetch_add(1, Ordering::SeqCst);
                if i >= 40 {
                    anyhow::bail!("item {i}")
                } else {
                    Ok(i)
                }
            },
            |_, _| Ok(()),
        )
        .unwrap_err();
        assert_eq!(err.to_string(), "item 40");
        assert!(started.load(Ordering::SeqCst) < 60);
    }

    #[test]
    fn an_error_of_the_receiver_ends_it() {
        let err = ordered_parallel(&pool(2), 100, 4, Ok, |i, _| {
            if i == 3 {
                anyhow::bail!("full")
            } else {
                Ok(())
            }
        });
        assert_eq!(err.unwrap_err().to_string(), "full");
    }
}
