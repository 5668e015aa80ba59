//! Multiple-choice knapsack: one choice per item, least total cost within a byte budget.
//!
//! The method, in the order it runs:
//!
//! 1. Choices that cost no less and take no fewer bytes than another of the same item are dropped
//!    (dominance), as are choices that no solution can afford.
//! 2. The linear relaxation is solved by taking the edges of every item's lower convex hull in
//!    order of damage removed per byte, until one no longer fits (Sinha & Zoltners, "The
//!    Multiple-Choice Knapsack Problem", Operations Research 27, 1979). The slope of that edge is
//!    the multiplier `λ`, in cost per byte, and gives the Dantzig-type lower bound of Dyer (1984) and
//!    Zemel (1984): `Σ min_j (cost_ij + λ·bytes_ij) − λ·budget`.
//! 3. A first solution comes from rounding the relaxation down, continuing the greedy with what
//!    still fits, and exchanging single choices and pairs of choices.
//! 4. Choices whose own relaxation bound cannot beat that solution are removed. What is left, the
//!    core, is solved by dynamic programming over undominated (bytes, cost) states (Nemhauser &
//!    Ullmann 1969), starting from the relaxation's solution and taking the most undecided items
//!    first (the expanding core of Pisinger, "A minimal algorithm for the Multiple-Choice Knapsack
//!    Problem", EJOR 83, 1995). Each state is pruned by the relaxation of the items not yet taken.
//! 5. Work is counted in states, not in time, so results do not depend on the machine. When the
//!    allowance runs out the states with the best bounds are kept, and the least bound among the
//!    discarded ones remains a valid bound for the answer.

#[cfg(test)]
pub(super) mod tests;

/// One way to store an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Size in bytes.
    pub bytes: u64,
    /// Expected damage in any unit shared by all items; finite and not negative.
    pub cost: f64,
}

/// A choice for every item.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// For each item, the index of its choice.
    pub picks: Vec<usize>,
    /// Total bytes of the picks; never above the budget.
    pub bytes: u64,
    /// Total cost of the picks, summed in item order.
    pub cost: f64,
    /// Proved lower bound on the cost of any solution within the budget; at most `cost`, and equal
    /// to it when `exact`.
    pub bound: f64,
    /// Whether the picks are proved optimal, up to the rounding of `f64` sums.
    pub exact: bool,
}

impl Solution {
    /// Largest share of `cost` by which a better solution could undercut this one: 0 if optimal.
    pub fn gap(&self) -> f64 {
        if self.cost > 0.0 {
            (self.cost - self.bound) / self.cost
        } else {
            0.0
        }
    }
}

/// Why there is no solution.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KnapsackError {
    /// Even the smallest choices exceed the budget. `minimum` saturates at `u64::MAX`.
    #[error(
        "the budget of {budget} bytes is too small: the smallest choice of every item together \
         takes {minimum} bytes"
    )]
    TooSmall { budget: u64, minimum: u64 },
    /// An item offers nothing to choose from.
    #[error("item {item} has no choices; every item needs at least one")]
    Empty { item: usize },
    /// A cost is NaN, infinite or negative.
    #[error(
        "choice {choice} of item {item} has cost {cost}; a cost must be finite and not negative"
    )]
    InvalidCost {
        item: usize,
        choice: usize,
        cost: f64,
    },
    /// The costs are finite but their sum is not.
    #[error(
        "the largest costs of all items together exceed the range of f64; scale the costs down"
    )]
    CostOverflow,
}

/// How much one pass of the dynamic programming may do.
struct Allowance {
    /// State transitions to try; this bounds the time.
    work: usize,
    /// States that every stage may keep even when the work is spent.
    min_states: usize,
}

/// A quick pass, whose better incumbent shrinks the core for a thorough one (about a second).
const PASSES: [Allowance; 2] = [
    Allowance {
        work: 2_000_000,
        min_states: 64,
    },
    Allowance {
        work: 16_000_000,
        min_states: 64,
    },
];
/// States kept after a stage.
const MAX_STATES: usize = 1 << 18;
/// Departures remembered to reconstruct solutions, 12 bytes each; this bounds the memory.
const MAX_TRACES: usize = 1 << 24;
/// How far above an even share of the remaining work a stage may go; early stages decide most.
const WORK_SKEW: usize = 16;
/// Moves the exchange search may examine.
const EXCHANGE_WORK: usize = 8_000_000;
/// Above this capacity signed byte differences could overflow, and only the greedy part runs.
const MAX_CORE_CAPACITY: u64 = 1 << 61;

/// Picks one choice per item so that the total cost is least and the total bytes are within
/// `budget`.
///
/// Deterministic: equal input gives equal output. Of choices that cost the same the smaller is
/// taken, and of identical choices the first.
///
/// # Errors
///
/// [`KnapsackError`] if an item has no choices, a cost is not finite or negative, the costs cannot be
/// summed in `f64`, or the budget is below the sum of the smallest choices.
pub fn solve(items: &[Vec<Choice>], budget: u64) -> Result<Solution, KnapsackError> {
    solve_with(items, budget, &PASSES)
}

/// As [`solve`], without the search for the optimum: the relaxation rounded and improved by exchanges, in a time
/// that grows little faster than the number of choices. The bound is the relaxation's.
///
/// # Errors
/// As [`solve`].
pub fn solve_quickly(items: &[Vec<Choice>], budget: u64) -> Result<Solution, KnapsackError> {
    solve_with(items, budget, &[])
}

fn solve_with(
    items: &[Vec<Choice>],
    budget: u64,
    passes: &[Allowance],
) -> Result<Solution, KnapsackError> {
    let problem = Problem::new(items, budget)?;
    let Some(relaxed) = Relaxation::new(&problem) else {
        // Every item can have its cheapest choice.
        let picks: Vec<usize> = (0..problem.len())
            .map(|i| problem.item(i).len() - 1)
            .collect();
        return Ok(problem.solution(items, &picks, None));
    };
    let mut incumbent = relaxed.rounded.clone();
    if problem.capacity > MAX_CORE_CAPACITY {
        let bound = relaxed.bound(&problem, problem.cost(&incumbent));
        return Ok(problem.solution(items, &incumbent, Some(bound)));
    }

    Core::new(&problem, &relaxed, &incumbent).exchange(&problem, &mut incumbent);
    let mut excess_bound = 0.0f64;
    for allowance in passes {
        // Rounding errors in a pass are relative to the cost it starts from, so its result counts
        // only if that was of the right size. Repeats are rare: each follows a drop to a sixteenth.
        loop {
            let cost = problem.cost(&incumbent);
            let core = Core::new(&problem, &relaxed, &incumbent);
            let search = core.search(allowance);
            if let Some(changes) = search.better {
                incumbent.clone_from(&relaxed.base);
                for (item, pick) in changes {
                    incumbent[item] = pick;
                }
            }
            core.exchange(&problem, &mut incumbent);
            if problem.cost(&incumbent) >= cost / 16.0 {
                excess_bound = excess_bound.max(search.dropped);
                break;
            }
        }
        if excess_bound >= relaxed.excess(&problem, &incumbent) {
            return Ok(problem.solution(items, &incumbent, None));
        }
    }
    let cost = problem.cost(&incumbent);
    let relaxed_bound = relaxed.bound(&problem, cost);
    // Reduced by more than the rounding in the excess: its terms are differences of numbers no larger
    // than the cost.
    let improved_bound = relaxed_bound + excess_bound * (1.0 - 1e-9) - 1e-13 * cost;
    let bound = relaxed_bound.max(improved_bound);
    Ok(problem.solution(items, &incumbent, Some(bound)))
}

/// An undominated choice.
#[derive(Debug, Clone, Copy)]
struct Opt {
    /// Units (see [`Problem::new`]) above the item's smallest choice.
    extra: u64,
    cost: f64,
    /// Index among the item's choices.
    index: usize,
}

/// The items' undominated choices, by ascending `extra` and so by descending cost.
///
/// Solutions inside this module are vectors of positions in [`Problem::item`].
struct Problem {
    start: Vec<usize>,
    opts: Vec<Opt>,
    /// Units left once every item has its smallest choice.
    capacity: u64,
}

impl Problem {
    fn new(items: &[Vec<Choice>], budget: u64) -> Result<Self, KnapsackError> {
        let mut minimum = 0u128;
        let mut worst_total = 0.0f64;
        for (item, choices) in items.iter().enumerate() {
            let Some(smallest) = choices.iter().map(|c| c.bytes).min() else {
                return Err(KnapsackError::Empty { item });
            };
            minimum += u128::from(smallest);
            let mut worst = 0.0f64;
            for (choice, &Choice { cost, .. }) in choices.iter().enumerate() {
                if !(cost.is_finite() && cost >= 0.0) {
                    return Err(KnapsackError::InvalidCost { item, choice, cost });
                }
                worst = worst.max(cost);
            }
            worst_total += worst;
        }
        if !worst_total.is_finite() {
            return Err(KnapsackError::CostOverflow);
        }
        let minimum = u64::try_from(minimum).ok();
        let Some(capacity) = minimum.and_then(|minimum| budget.checked_sub(minimum)) else {
            let minimum = minimum.unwrap_or(u64::MAX);
            return Err(KnapsackError::TooSmall { budget, minimum });
        };

        let mut start = Vec::with_capacity(items.len() + 1);
        let mut opts: Vec<Opt> = Vec::new();
        let mut sorted: Vec<Opt> = Vec::new();
        let mut unit = 0u64;
        start.push(0);
        for choices in items {
            sorted.clear();
            sorted.extend(choices.iter().enumerate().map(|(index, c)| Opt {
                extra: c.bytes,
                cost: c.cost,
                index,
            }));
            sorted.sort_by(|a, b| a.extra.cmp(&b.extra).then(a.cost.total_cmp(&b.cost)));
            let smallest = sorted[0].extra;
            let mut least = f64::INFINITY;
            for opt in &sorted {
                let extra = opt.extra - smallest;
                if opt.cost < least && extra <= capacity {
                    least = opt.cost;
                    unit = gcd(unit, extra);
                    opts.push(Opt { extra, ..*opt });
                }
            }
            start.push(opts.len());
        }
        // Counting in the common divisor of all differences discards the part of the budget that no
        // solution can use, which tightens the relaxation.
        let unit = unit.max(1);
        for opt in &mut opts {
            opt.extra /= unit;
        }
        Ok(Self {
            start,
            opts,
            capacity: capacity / unit,
        })
    }

    fn len(&self) -> usize {
        self.start.len() - 1
    }

    fn item(&self, i: usize) -> &[Opt] {
        &self.opts[self.start[i]..self.start[i + 1]]
    }

    /// Units that `picks` leave unused. `picks` must be within the capacity.
    fn slack(&self, picks: &[usize]) -> u64 {
        let used: u64 = (0..self.len()).map(|i| self.item(i)[picks[i]].extra).sum();
        self.capacity - used
    }

    fn cost(&self, picks: &[usize]) -> f64 {
        (0..self.len()).map(|i| self.item(i)[picks[i]].cost).sum()
    }

    /// Without a bound the picks are known to be optimal.
    fn solution(&self, items: &[Vec<Choice>], picks: &[usize], bound: Option<f64>) -> Solution {
        let picks: Vec<usize> = (0..self.len())
            .map(|i| self.item(i)[picks[i]].index)
            .collect();
        let chosen = || picks.iter().zip(items).map(|(&pick, item)| item[pick]);
        let bytes = chosen().map(|c| c.bytes).sum();
        // `+ 0.0` turns the empty sum's -0.0 into 0.0.
        let cost = chosen().map(|c| c.cost).sum::<f64>() + 0.0;
        let exact = bound.is_none();
        // NaN, from costs near the end of the range, counts as no bound.
        let bound = bound.map_or(cost, |bound| bound.max(0.0).min(cost));
        Solution {
            picks,
            bytes,
            cost,
            bound,
            exact,
        }
    }
}

/// An edge of an item's lower convex hull.
struct Edge {
    /// Cost removed per unit.
    slope: f64,
    item: usize,
    /// Position at the edge's far end.
    to: usize,
    units: u64,
}

/// The linear relaxation.
struct Relaxation {
    /// Cost per unit at the margin.
    lambda: f64,
    /// The relaxation's choices with the edge that did not fit, which takes more than the capacity.
    /// Costs relative to this side of the edge suffer no cancellation: the bound is the cost of
    /// `base` plus a positive term, so no cost in `base` exceeds that of any solution.
    base: Vec<usize>,
    /// Units that `base` takes beyond the capacity.
    deficit: u64,
    /// A solution: the relaxation's choices without that edge, improved by every later one that fits.
    rounded: Vec<usize>,
}

impl Relaxation {
    /// None if the cheapest choice of every item fits.
    fn new(problem: &Problem) -> Option<Self> {
        let mut edges = Vec::new();
        let mut points = Vec::new();
        let mut hull = Vec::new();
        for item in 0..problem.len() {
            let opts = problem.item(item);
            points.clear();
            points.extend(opts.iter().map(|o| (o.extra, o.cost)));
            lower_hull(&points, &mut hull);
            edges.extend(hull.windows(2).map(|w| {
                let (from, to) = (opts[w[0]], opts[w[1]]);
                let units = to.extra - from.extra;
                Edge {
                    slope: (from.cost - to.cost) / units as f64,
                    item,
                    to: w[1],
                    units,
                }
            }));
        }
        // Slopes strictly descend within an item, so its edges stay in order.
        edges.sort_by(|a, b| b.slope.total_cmp(&a.slope).then(a.item.cmp(&b.item)));

        let mut base = vec![0; problem.len()];
        let mut slack = problem.capacity;
        let split = edges.iter().position(|edge| {
            if edge.units > slack {
                return true;
            }
            slack -= edge.units;
            base[edge.item] = edge.to;
            false
        })?;
        let mut rounded = base.clone();
        base[edges[split].item] = edges[split].to;
        let deficit = edges[split].units - slack;
        for edge in &edges[split + 1..] {
            // After a skipped edge of the same item the far end may still fit, at its full distance.
            let opts = problem.item(edge.item);
            let units = opts[edge.to].extra - opts[rounded[edge.item]].extra;
            if units <= slack {
                slack -= units;
                rounded[edge.item] = edge.to;
            }
        }
        Some(Self {
            lambda: edges[split].slope,
            base,
            deficit,
            rounded,
        })
    }

    /// Lower bound on the cost of every solution, rounding included, given the cost of one.
    ///
    /// Choices that cost more than `incumbent` cannot be part of a better solution, so their rounding
    /// does not matter.
    fn bound(&self, problem: &Problem, incumbent: f64) -> f64 {
        let mut total = CompensatedSum::default();
        for item in 0..problem.len() {
            let opts = problem.item(item);
            total.add(opts[self.base[item]].cost);
            // `base` minimises cost + λ·units only up to rounding: give away what it may miss.
            let least = (0..opts.len())
                .filter(|&pick| opts[pick].cost <= incumbent)
                .map(|pick| self.signed_reduced(problem, item, pick))
                .map(|(reduced, magnitude)| reduced - 4.0 * f64::EPSILON * magnitude)
                .fold(0.0, f64::min);
            total.add(least);
        }
        total.add(self.lambda * self.deficit as f64);
        total.value() * (1.0 - 8.0 * f64::EPSILON)
    }

    /// `(cost + λ·units)` of a choice less that of the item's base choice, and the size of the terms
    /// that were subtracted.
    fn signed_reduced(&self, problem: &Problem, item: usize, pick: usize) -> (f64, f64) {
        let (base, opt) = (
            problem.item(item)[self.base[item]],
            problem.item(item)[pick],
        );
        // Subtracting bytes as integers first keeps close choices precise.
        let cost = opt.cost - base.cost;
        let units = self.lambda * (i128::from(opt.extra) - i128::from(base.extra)) as f64;
        (cost + units, cost.abs() + units.abs())
    }

    /// Reduced cost of a choice: what it adds to the relaxation's bound; 0 for the base choice.
    fn reduced(&self, problem: &Problem, item: usize, pick: usize) -> f64 {
        self.signed_reduced(problem, item, pick).0.max(0.0)
    }

    /// By how much the cost of `picks` exceeds the relaxation's bound: `Σ reduced + λ·slack`. This
    /// form compares solutions without cancellation between large totals.
    fn excess(&self, problem: &Problem, picks: &[usize]) -> f64 {
        let reduced: f64 = (0..problem.len())
            .map(|i| self.reduced(problem, i, picks[i]))
            .sum();
        reduced + self.lambda * problem.slack(picks) as f64
    }
}

/// A choice that may be part of a better solution, relative to its item's base choice.
#[derive(Debug, Clone, Copy)]
struct CoreOpt {
    units: i64,
    reduced: f64,
    /// Position in [`Problem::item`].
    pick: usize,
}

/// An item that is not decided by bounds.
struct CoreItem {
    item: usize,
    /// The base choice comes first.
    opts: Vec<CoreOpt>,
}

/// A piece of the relaxation of core items not yet taken.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Reduced cost per unit.
    rate: f64,
    units: i64,
    stage: usize,
}

/// What bounds leave undecided. Items outside keep their base choice.
struct Core {
    lambda: f64,
    /// Slack of the base choices; negative.
    slack: i64,
    /// Excess of the incumbent; only less is of interest.
    limit: f64,
    items: Vec<CoreItem>,
}

impl Core {
    fn new(problem: &Problem, relaxed: &Relaxation, incumbent: &[usize]) -> Self {
        let mut core = Core {
            lambda: relaxed.lambda,
            slack: -signed(relaxed.deficit),
            limit: relaxed.excess(problem, incumbent),
            items: Vec::new(),
        };
        let cost = problem.cost(incumbent);
        for item in 0..problem.len() {
            let base = relaxed.base[item];
            let all = problem.item(item);
            let mut opts = vec![CoreOpt {
                units: 0,
                reduced: 0.0,
                pick: base,
            }];
            opts.extend((0..all.len()).filter(|&j| j != base).filter_map(|pick| {
                let reduced = relaxed.reduced(problem, item, pick);
                (reduced < core.limit && all[pick].cost <= cost).then(|| CoreOpt {
                    units: signed(all[pick].extra) - signed(all[base].extra),
                    reduced,
                    pick,
                })
            }));
            if opts.len() > 1 {
                core.items.push(CoreItem { item, opts });
            }
        }
        // A second look with the relaxation of the whole core, which also prices the bytes that a
        // choice would leave over or would need from others.
        let steps = core.steps();
        let envelope = Envelope::new(&steps, 0, core.limit, core.lambda);
        for entry in &mut core.items {
            let (slack, limit) = (core.slack, core.limit);
            entry
                .opts
                .retain(|o| o.units == 0 || o.reduced + envelope.at(slack - o.units) < limit);
        }
        core.items.retain(|entry| entry.opts.len() > 1);
        // Most undecided first: their cheapest alternative per unit is closest to the margin.
        let rate = |entry: &CoreItem| {
            entry.opts[1..]
                .iter()
                .map(|o| o.reduced / o.units.unsigned_abs() as f64)
                .fold(f64::INFINITY, f64::min)
        };
        core.items
            .sort_by(|a, b| rate(a).total_cmp(&rate(b)).then(a.item.cmp(&b.item)));
        core
    }

    /// The pieces of every core item's relaxation in both directions, by ascending rate.
    fn steps(&self) -> [Vec<Step>; 2] {
        let mut result = [Vec::new(), Vec::new()];
        let mut points: Vec<(u64, f64)> = Vec::new();
        let mut hull = Vec::new();
        for (stage, entry) in self.items.iter().enumerate() {
            for (sign, steps) in [1i64, -1].into_iter().zip(&mut result) {
                points.clear();
                let side = entry.opts.iter().filter(|o| o.units.signum() != -sign);
                points.extend(side.map(|o| (o.units.unsigned_abs(), o.reduced)));
                points.sort_by_key(|p| p.0);
                lower_hull(&points, &mut hull);
                steps.extend(hull.windows(2).map(|w| {
                    let (from, to) = (points[w[0]], points[w[1]]);
                    Step {
                        rate: ((to.1 - from.1) / (to.0 - from.0) as f64).max(0.0),
                        units: signed(to.0 - from.0),
                        stage,
                    }
                }));
            }
        }
        for steps in &mut result {
            steps.sort_by(|a, b| a.rate.total_cmp(&b.rate).then(a.stage.cmp(&b.stage)));
        }
        result
    }

    /// Improves `picks` by the best single change or the best pair of one dearer and one cheaper
    /// change, until there is none or [`EXCHANGE_WORK`] is spent. Only choices in the core are tried:
    /// no better solution has others.
    fn exchange(&self, problem: &Problem, picks: &mut [usize]) {
        #[derive(Clone, Copy)]
        struct Move {
            item: usize,
            pick: usize,
            units: u64,
            cost: f64,
        }
        let mut slack = problem.slack(picks);
        let (mut gains, mut losses): (Vec<Move>, Vec<Move>) = (Vec::new(), Vec::new());
        let size: usize = self.items.iter().map(|entry| entry.opts.len()).sum();
        for _ in 0..EXCHANGE_WORK / size.max(1) {
            gains.clear();
            losses.clear();
            for entry in &self.items {
                let opts = problem.item(entry.item);
                let now = opts[picks[entry.item]];
                for pick in entry.opts.iter().map(|o| o.pick) {
                    let opt = opts[pick];
                    let (list, cost) = if opt.extra > now.extra {
                        (&mut gains, now.cost - opt.cost)
                    } else if opt.extra < now.extra {
                        (&mut losses, opt.cost - now.cost)
                    } else {
                        continue;
                    };
                    list.push(Move {
                        item: entry.item,
                        pick,
                        units: opt.extra.abs_diff(now.extra),
                        cost,
                    });
                }
            }
            // From the largest need on, the losses that free enough form a growing prefix; of it the
            // cheapest two of different items suffice, as one may belong to the gaining item.
            gains.sort_by_key(|m| std::cmp::Reverse((m.units, m.item)));
            losses.sort_by_key(|m| std::cmp::Reverse((m.units, m.item)));
            let mut cheapest: [Option<Move>; 2] = [None; 2];
            let mut pool = losses.iter().peekable();
            let mut best: Option<(f64, Move, Option<Move>)> = None;
            for &gain in gains.iter() {
                let need = gain.units.saturating_sub(slack);
                while let Some(&loss) = pool.next_if(|m| m.units >= need && need > 0) {
                    let beats = |other: Option<Move>| other.is_none_or(|o| loss.cost < o.cost);
                    if beats(cheapest[0]) {
                        if cheapest[0].is_some_and(|o| o.item != loss.item) {
                            cheapest[1] = cheapest[0];
                        }
                        cheapest[0] = Some(loss);
                    } else if cheapest[0].is_some_and(|o| o.item != loss.item) && beats(cheapest[1])
                    {
                        cheapest[1] = Some(loss);
                    }
                }
                let payment = if need == 0 {
                    None
                } else {
                    match cheapest.iter().flatten().find(|m| m.item != gain.item) {
                        Some(&loss) => Some(loss),
                        None => continue,
                    }
                };
                let net = gain.cost - payment.map_or(0.0, |m| m.cost);
                if net > 0.0 && best.is_none_or(|(most, ..)| net > most) {
                    best = Some((net, gain, payment));
                }
            }
            let Some((_, gain, payment)) = best else {
                return;
            };
            if let Some(loss) = payment {
                picks[loss.item] = loss.pick;
                slack += loss.units;
            }
            picks[gain.item] = gain.pick;
            slack -= gain.units;
        }
    }

    /// Dynamic programming over the core items within an allowance.
    fn search(&self, allowance: &Allowance) -> Search {
        struct State {
            /// Units left if the items not yet taken keep their base choice; may be negative.
            slack: i64,
            reduced: f64,
            /// Least excess of any completion.
            bound: f64,
            trace: u32,
            option: u32,
        }
        /// A departure from the base choices, linked to the one before.
        struct Trace {
            before: u32,
            stage: u32,
            option: u32,
        }
        const NONE: u32 = u32::MAX;

        let mut work = allowance.work;
        let mut limit = self.limit;
        let mut dropped = f64::INFINITY;
        let mut best: Option<(u32, usize, u32)> = None;
        let mut traces: Vec<Trace> = Vec::new();
        let mut states = vec![State {
            slack: self.slack,
            reduced: 0.0,
            bound: 0.0,
            trace: NONE,
            option: 0,
        }];
        let mut next: Vec<State> = Vec::new();
        let mut bounds: Vec<f64> = Vec::new();
        let mut steps = self.steps();
        let mut options_left: usize = self.items.iter().map(|entry| entry.opts.len()).sum();

        for (stage, entry) in self.items.iter().enumerate() {
            if stage % 64 == 0 {
                for side in &mut steps {
                    side.retain(|s| s.stage >= stage);
                }
            }
            let envelope = Envelope::new(&steps, stage + 1, limit, self.lambda);
            next.clear();
            for (option, opt) in (0u32..).zip(&entry.opts) {
                for state in &states {
                    let slack = state.slack.saturating_sub(opt.units);
                    let reduced = state.reduced + opt.reduced;
                    if reduced >= limit {
                        continue;
                    }
                    let bound = reduced + envelope.at(slack);
                    if bound >= limit {
                        continue;
                    }
                    if slack >= 0 {
                        let excess = reduced + self.lambda * slack as f64;
                        if excess < limit {
                            limit = excess;
                            best = Some((state.trace, stage, option));
                        }
                    }
                    next.push(State {
                        slack,
                        reduced,
                        bound,
                        trace: state.trace,
                        option,
                    });
                }
            }
            work = work.saturating_sub(states.len() * entry.opts.len());
            options_left -= entry.opts.len();

            // Runs of descending slack: the stable sort merges them.
            next.sort_by(|a, b| {
                let order = b.slack.cmp(&a.slack);
                order.then(a.reduced.total_cmp(&b.reduced))
            });
            states.clear();
            for state in next.drain(..).filter(|s| s.bound < limit) {
                // Dominated if the last state kept has no fewer units left and costs no more.
                let dominated = states.last().is_some_and(|last: &State| {
                    last.reduced + self.lambda * (last.slack - state.slack) as f64 <= state.reduced
                });
                if !dominated {
                    states.push(state);
                }
            }
            let share = WORK_SKEW * (work / options_left.max(1));
            let allowed = share.max(allowance.min_states).min(MAX_STATES);
            if states.len() > allowed {
                bounds.clear();
                bounds.extend(states.iter().map(|s| s.bound));
                let threshold = *bounds.select_nth_unstable_by(allowed, f64::total_cmp).1;
                dropped = dropped.min(threshold);
                // Of equally good states keep a sample spread evenly over their slack.
                let better = states.iter().filter(|s| s.bound < threshold).count();
                let tied = states.iter().filter(|s| s.bound == threshold).count();
                let (mut phase, room) = (0, allowed - better);
                states.retain(|s| {
                    if s.bound == threshold {
                        phase += room;
                    }
                    let due = s.bound == threshold && phase >= tied;
                    if due {
                        phase -= tied;
                    }
                    due || s.bound < threshold
                });
            }
            if states.is_empty() {
                break;
            }
            if traces.len() + states.len() > MAX_TRACES {
                dropped = states.iter().map(|s| s.bound).fold(dropped, f64::min);
                break;
            }
            for state in states.iter_mut().filter(|s| s.option != 0) {
                traces.push(Trace {
                    before: state.trace,
                    stage: stage as u32,
                    option: state.option,
                });
                state.trace = (traces.len() - 1) as u32;
            }
        }

        let better = best.map(|(mut trace, stage, option)| {
            let pick = |stage: usize, option: u32| {
                let entry = &self.items[stage];
                (entry.item, entry.opts[option as usize].pick)
            };
            let mut changes = Vec::new();
            if option != 0 {
                changes.push(pick(stage, option));
            }
            while trace != NONE {
                let t = &traces[trace as usize];
                changes.push(pick(t.stage as usize, t.option));
                trace = t.before;
            }
            changes
        });
        Search { better, dropped }
    }
}

/// Result of [`Core::search`].
struct Search {
    /// Departures (item, pick) from the base choices of a solution better than the incumbent.
    better: Option<Vec<(usize, usize)>>,
    /// Least excess that a solution through a discarded state could have; infinite if none was
    /// discarded for want of work.
    dropped: f64,
}

/// Relaxation of some core items as a function of slack: the least excess they can add when the
/// slack is to be spent (positive) or recovered (negative). Convex and piecewise linear.
struct Envelope {
    sides: [Vec<Piece>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    from: i64,
    to: i64,
    excess: f64,
    rate: f64,
}

impl Envelope {
    /// Of the `steps` at `stage` and later. Values from `limit` up need not be precise.
    fn new(steps: &[Vec<Step>; 2], stage: usize, limit: f64, lambda: f64) -> Self {
        // Slack left unspent is worth λ per unit; units that nobody can give back have no price.
        let sides = [(&steps[0], lambda), (&steps[1], f64::INFINITY)].map(|(steps, last)| {
            let mut pieces = Vec::new();
            let (mut from, mut excess) = (0i64, 0.0f64);
            let mut rate = last;
            for step in steps.iter().filter(|s| s.stage >= stage) {
                if excess >= limit {
                    rate = step.rate;
                    break;
                }
                let to = from.saturating_add(step.units);
                pieces.push(Piece {
                    from,
                    to,
                    excess,
                    rate: step.rate,
                });
                excess += step.rate * step.units as f64;
                from = to;
            }
            pieces.push(Piece {
                from,
                to: i64::MAX,
                excess,
                rate,
            });
            pieces
        });
        Self { sides }
    }

    fn at(&self, slack: i64) -> f64 {
        if slack == 0 {
            return 0.0;
        }
        let side = &self.sides[usize::from(slack < 0)];
        let distance = slack.saturating_abs();
        let piece = side[side.partition_point(|p| p.to < distance)];
        piece.excess + piece.rate * (distance - piece.from) as f64
    }
}

/// Positions of the lower convex hull of `points` (ascending, distinct abscissae), both ends
/// included; slopes strictly increase along it.
fn lower_hull(points: &[(u64, f64)], hull: &mut Vec<usize>) {
    hull.clear();
    let slope =
        |a: usize, b: usize| (points[b].1 - points[a].1) / (points[b].0 - points[a].0) as f64;
    for next in 0..points.len() {
        while let [.., a, b] = hull[..]
            && slope(a, b) >= slope(b, next)
        {
            hull.pop();
        }
        hull.push(next);
    }
}

/// Capacities are at most [`MAX_CORE_CAPACITY`] where this is used.
fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Neumaier's compensated sum.
#[derive(Default)]
struct CompensatedSum {
    sum: f64,
    correction: f64,
}

impl CompensatedSum {
    fn add(&mut self, value: f64) {
        let total = self.sum + value;
        self.correction += if self.sum.abs() >= value.abs() {
            (self.sum - total) + value
        } else {
            (value - total) + self.sum
        };
        self.sum = total;
    }

    fn value(&self) -> f64 {
        self.sum + self.correction
    }
}
