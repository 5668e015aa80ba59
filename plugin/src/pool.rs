//! Threads that share a job: they take numbered tasks from one counter.
//!
//! Where ggml's CPU backend uses OpenMP, jobs are done by its threads: after each of its graphs they wait for the next
//! one by looking for it, for milliseconds, and threads of our own would have to share the cores with them. Otherwise
//! there are threads of our own. One of those that has not woken up when the tasks are gone is not waited for, so a
//! job is never slower than the caller alone by more than the task that a worker is in.

use std::any::Any;
use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::host::symbols::Parallel;

/// How often a worker looks for the next job before it sleeps: some tens of microseconds. The two steps of a
/// product and the products of a graph follow each other sooner; between graphs the cores are the host's.
const SPINS: u32 = 1_000;
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
pub struct Pool(Kind);

enum Kind {
    Own(Workers),
    /// The threads of an OpenMP runtime.
    Team {
        parallel: Parallel,
        threads: usize,
    },
}

struct Workers {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl Pool {
    /// A pool of the OpenMP runtime's threads, the caller's included.
    pub(crate) fn of_team(parallel: Parallel, threads: usize) -> Self {
        let threads = threads.clamp(1, MAX_THREADS);
        Self(Kind::Team { parallel, threads })
    }

    /// A pool that works with `threads` threads of its own, the caller's included. Where the system refuses a thread,
    /// there are fewer.
    pub fn new(threads: usize) -> Self {
        Self(Kind::Own(Workers::new(threads)))
    }

    /// Threads that take part in a job, the caller's included.
    pub fn threads(&self) -> usize {
        match &self.0 {
            Kind::Own(own) => own.workers.len() + 1,
            Kind::Team { threads, .. } => *threads,
        }
    }

    /// How long a job must take one thread, in microseconds, for others to be of use.
    pub fn worthwhile(&self) -> u64 {
        match self.0 {
            // To wake a thread takes about as long.
            Kind::Own(_) => 60,
            Kind::Team { .. } => 8,
        }
    }

    /// Does a job of `count` tasks: each thread that takes part calls `work` once, which takes tasks until there are
    /// none. Returns when every task that was taken is done. With `alone`, the caller does all.
    ///
    /// # Errors
    /// A task panicked; the others may not have been done.
    pub fn run(&mut self, count: usize, alone: bool, work: &Work<'_>) -> Result<(), Panicked> {
        let job = Job {
            work,
            tasks: Tasks {
                next: AtomicUsize::new(0),
                count,
                stop: AtomicBool::new(false),
            },
            panic: Mutex::new(None),
        };
        match &self.0 {
            _ if alone || count < 2 || self.threads() == 1 => job.take_part(0),
            Kind::Own(own) => own.run(&job),
            Kind::Team { parallel, threads } => run_by_team(*parallel, *threads, &job),
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

fn run_by_team(parallel: Parallel, threads: usize, job: &Job<'_>) {
    struct Region<'a> {
        job: &'a Job<'a>,
        entered: AtomicUsize,
        threads: usize,
    }
    unsafe extern "C" fn enter(region: *mut c_void) {
        // SAFETY: `parallel` hands on the pointer below, and returns when all threads have left.
        let region = unsafe { &*region.cast_const().cast::<Region<'_>>() };
        let thread = region.entered.fetch_add(1, SeqCst);
        if thread < region.threads {
            region.job.take_part(thread);
        }
    }
    let region = Region {
        job,
        entered: AtomicUsize::new(0),
        threads,
    };
    // Always as many: the runtime ends threads that a region has no use for. They fit: `MAX_THREADS`.
    // SAFETY: `enter` takes what it is given, shares it only by reference and lets no panic out.
    unsafe {
        parallel(
            enter,
            (&raw const region).cast_mut().cast(),
            threads as c_uint,
            0,
        )
    };
}

impl Workers {
    fn new(threads: usize) -> Self {
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

    fn run(&self, job: &Job<'_>) {
        let shared = &self.shared;
        shared
            .job
            .store((&raw const *job).cast_mut().cast(), SeqCst);
        shared.number.fetch_add(1, SeqCst);
        // One worker for each task that the caller cannot start at once.
        for (worker, (thread, _)) in self.workers.iter().enumerate().take(job.tasks.count - 1) {
            if shared.sleeping[worker].swap(false, SeqCst) {
                thread.unpark();
            }
        }
        job.take_part(0);
        // Nobody enters from here on; those inside finish their task.
        shared.job.store(std::ptr::null_mut(), SeqCst);
        let mut spins = 0u32;
        while shared.inside.load(SeqCst) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                // The worker may be waiting for this core.
                thread::yield_now();
            }
        }
    }
}

impl Drop for Workers {
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
                    pool.run(count, false, &|thread, tasks| {
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

    /// What an OpenMP runtime does, with new threads each time.
    unsafe extern "C" fn parallel(
        enter: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        threads: c_uint,
        _: c_uint,
    ) {
        let data = data as usize;
        thread::scope(|scope| {
            // One more than asked for.
            for _ in 0..=threads {
                // SAFETY: the data outlives the scope.
                scope.spawn(move || unsafe { enter(data as *mut c_void) });
            }
        });
    }

    #[test]
    fn a_runtimes_threads_do_every_task_once() {
        let mut pool = Pool::of_team(parallel, 3);
        for count in [0, 1, 2, 100] {
            for alone in [false, true] {
                let done: Vec<_> = (0..count).map(|_| AtomicU32::new(0)).collect();
                pool.run(count, alone, &|thread, tasks| {
                    assert!(thread < if alone { 1 } else { 3 });
                    for task in tasks {
                        done[task].fetch_add(1, SeqCst);
                    }
                })
                .unwrap();
                assert!(done.iter().all(|d| d.load(SeqCst) == 1));
            }
        }
        let result = pool.run(9, false, &|_, tasks| {
            for task in tasks {
                assert!(task != 5, "five");
            }
        });
        assert_eq!(result, Err(Panicked("five".into())));
    }

    #[test]
    fn workers_take_part_after_they_slept() {
        let mut pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let helped = AtomicBool::new(false);
            // The second task is only done once a worker came: the caller's waits for it.
            let start = std::time::Instant::now();
            pool.run(2, false, &|thread, tasks| {
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
            let result = pool.run(20, false, &|_, tasks| {
                for task in tasks {
                    assert!(task != bad, "task {task} is bad");
                }
            });
            assert_eq!(result, Err(Panicked(format!("task {bad} is bad"))));
            let result = pool.run(20, false, &|_, tasks| {
                for task in tasks {
                    assert!(task < 20);
                }
            });
            assert_eq!(result, Ok(()));
        }
    }

    /// Many short jobs, several pools at once, more threads than cores: every task once, its results seen by the
    /// caller, and nothing of a job is touched after it has returned. `MOQA_STRESS` is the number of jobs, for tools
    /// that slow it down.
    #[test]
    fn many_jobs_on_several_pools_at_once() {
        let jobs: u64 = std::env::var("MOQA_STRESS").map_or(3000, |n| n.parse().unwrap());
        thread::scope(|scope| {
            for threads in [2, 3, 5] {
                scope.spawn(move || {
                    let mut pool = Pool::new(threads);
                    let mut state = 88_172_645_463_325_252u64 + threads as u64;
                    for job in 0..jobs {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        let count = (state % 40) as usize;
                        // Freed at the end of the job: a worker that came late would be seen by tools.
                        let results: Vec<AtomicU64> =
                            (0..count).map(|_| AtomicU64::new(0)).collect();
                        // Relaxed: what tasks wrote is seen because the job has ended.
                        let relaxed = std::sync::atomic::Ordering::Relaxed;
                        pool.run(count, state.is_multiple_of(7), &|_, tasks| {
                            for task in tasks {
                                let mut value = job ^ task as u64;
                                for _ in 0..(state >> 20) % 50 {
                                    value = value.wrapping_mul(6_364_136_223_846_793_005) ^ 1;
                                }
                                let old = results[task].load(relaxed);
                                results[task].store(old + value, relaxed);
                            }
                        })
                        .unwrap();
                        for (task, result) in results.iter().enumerate() {
                            let mut value = job ^ task as u64;
                            for _ in 0..(state >> 20) % 50 {
                                value = value.wrapping_mul(6_364_136_223_846_793_005) ^ 1;
                            }
                            assert_eq!(result.load(relaxed), value, "job {job}, task {task}");
                        }
                        if job % 100 == 0 {
                            // Long enough for workers to sleep.
                            thread::sleep(std::time::Duration::from_millis(2));
                        }
                    }
                });
            }
        });
    }
}
