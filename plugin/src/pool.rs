//! Threads that share a job: the caller and its workers take numbered tasks from one counter. A worker that has not
//! woken up when the tasks are gone is not waited for, so a job is never slower than the caller alone by more than
//! the task that a worker is in.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// How often a worker looks for the next job before it sleeps: some tens of microseconds. The two steps of a
/// product and the products of a graph follow each other sooner; between graphs the cores are the host's.
const SPINS: u32 = 2_000;
/// More threads than that are never started.
const MAX_THREADS: usize = 512;

/// A task of a job panicked; the panic's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task panicked: {0}")]
pub struct Panicked(pub String);

/// What to do: called once by each thread that takes part, with the thread's number (0 is the caller's) and the
/// tasks that are left.
type Work<'a> = dyn Fn(usize, &Tasks) + Sync + 'a;

/// The tasks of a job that nobody has taken yet.
pub struct Tasks {
    next: AtomicUsize,
    count: usize,
    stop: AtomicBool,
}

impl Iterator for &Tasks {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        // The count cannot overflow: a thread asks once more than it gets.
        let task = self.next.fetch_add(1, SeqCst);
        (task < self.count && !self.stop.load(SeqCst)).then_some(task)
    }
}

struct Job<'a> {
    work: &'a Work<'a>,
    tasks: Tasks,
    panic: Mutex<Option<String>>,
}

impl Job<'_> {
    fn take_part(&self, thread: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(thread, &self.tasks)));
        if let Err(panic) = result {
            self.tasks.stop.store(true, SeqCst);
            lock(&self.panic).get_or_insert(message(panic.as_ref()));
        }
    }
}

struct Shared {
    /// The job that is open to workers; null if there is none.
    job: AtomicPtr<()>,
    /// Counts jobs: workers look at it to see a new one.
    number: AtomicU64,
    /// Workers that may be using `job`.
    inside: AtomicUsize,
    quit: AtomicBool,
    sleeping: Vec<AtomicBool>,
}

/// A fixed number of threads, of which one is the caller's.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl Pool {
    /// A pool that works with `threads` threads, the caller's included. Where the system refuses a thread, there are
    /// fewer.
    pub fn new(threads: usize) -> Self {
        let wanted = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(std::ptr::null_mut()),
            number: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            sleeping: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers = (0..wanted)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("moqa-{worker}"))
                    .spawn(move || shared.serve(worker))
                    .ok()
            })
            .map(|handle| (handle.thread().clone(), Some(handle)))
            .collect();
        Self { shared, workers }
    }

    /// Threads that take part in a job, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Does a job of `count` tasks: each thread that takes part calls `work` once, which takes tasks until there are
    /// none. Returns when every task that was taken is done.
    ///
    /// # Errors
    /// A task panicked; the others may not have been done.
    pub fn run(&mut self, count: usize, work: &Work<'_>) -> Result<(), Panicked> {
        let job = Job {
            work,
            tasks: Tasks {
                next: AtomicUsize::new(0),
                count,
                stop: AtomicBool::new(false),
            },
            panic: Mutex::new(None),
        };
        let open = count > 1 && !self.workers.is_empty();
        if open {
            self.shared
                .job
                .store((&raw const job).cast_mut().cast(), SeqCst);
            self.shared.number.fetch_add(1, SeqCst);
            // One worker for each task that the caller cannot start at once.
            for (worker, (thread, _)) in self.workers.iter().enumerate().take(count - 1) {
                if self.shared.sleeping[worker].swap(false, SeqCst) {
                    thread.unpark();
                }
            }
        }
        job.take_part(0);
        if open {
            // Nobody enters from here on; those inside finish their task.
            self.shared.job.store(std::ptr::null_mut(), SeqCst);
            let mut spins = 0u32;
            while self.shared.inside.load(SeqCst) != 0 {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    // The worker may be waiting for this core.
                    thread::yield_now();
                }
            }
        }
        match job
            .panic
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            None => Ok(()),
            Some(message) => Err(Panicked(message)),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        self.shared.number.fetch_add(1, SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                _ = handle.join();
            }
        }
    }
}

impl Shared {
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(worker, seen);
            if self.quit.load(SeqCst) {
                return;
            }
            // Entered before the job is looked up: the caller closes the job first and then waits until nobody is
            // inside, so a job seen here lives until this thread has left.
            self.inside.fetch_add(1, SeqCst);
            let job = self.job.load(SeqCst);
            if !job.is_null() {
                // SAFETY: `run` stored the address of its job, and does not return before `inside` is zero once it
                // has taken the address away; both are sequentially consistent, and this thread has entered before
                // it read the address.
                let job = unsafe { &*job.cast_const().cast::<Job<'_>>() };
                job.take_part(worker + 1);
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a job after `seen`, first looking and then sleeping.
    fn wait(&self, worker: usize, seen: u64) -> u64 {
        for _ in 0..SPINS {
            let number = self.number.load(SeqCst);
            if number != seen {
                return number;
            }
            std::hint::spin_loop();
        }
        loop {
            self.sleeping[worker].store(true, SeqCst);
            let number = self.number.load(SeqCst);
            if number != seen {
                self.sleeping[worker].store(false, SeqCst);
                return number;
            }
            thread::park();
        }
    }
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// A lock that a panic elsewhere does not close.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for count in [0, 1, 2, 5, 1000] {
                for _ in 0..50 {
                    let done: Vec<_> = (0..count).map(|_| AtomicU32::new(0)).collect();
                    pool.run(count, &|thread, tasks| {
                        assert!(thread < threads);
                        for task in tasks {
                            done[task].fetch_add(1, SeqCst);
                        }
                    })
                    .unwrap();
                    assert!(done.iter().all(|d| d.load(SeqCst) == 1));
                }
            }
        }
    }

    #[test]
    fn workers_take_part_after_they_slept() {
        let mut pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let helped = AtomicBool::new(false);
            // The second task is only done once a worker came: the caller's waits for it.
            let start = std::time::Instant::now();
            pool.run(2, &|thread, tasks| {
                for _ in tasks {
                    if thread > 0 {
                        helped.store(true, SeqCst);
                    }
                    while !helped.load(SeqCst) && start.elapsed().as_secs() < 20 {
                        thread::yield_now();
                    }
                }
            })
            .unwrap();
            assert!(helped.load(SeqCst));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let mut pool = Pool::new(3);
        for bad in 0..20 {
            let result = pool.run(20, &|_, tasks| {
                for task in tasks {
                    assert!(task != bad, "task {task} is bad");
                }
            });
            assert_eq!(result, Err(Panicked(format!("task {bad} is bad"))));
            let result = pool.run(20, &|_, tasks| {
                for task in tasks {
                    assert!(task < 20);
                }
            });
            assert_eq!(result, Ok(()));
        }
    }
}
